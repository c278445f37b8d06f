// The OpenAPI description as a page: routes, parameters, responses.
'use strict';

function element(name, text, ...children) {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  made.append(...children);
  return made;
}

function resolve(description, schema) {
  const name = schema && schema.$ref && schema.$ref.split('/').pop();
  return name ? description.components.schemas[name] : schema || {};
}

function kind(schema) {
  const kinds = schema.anyOf ? schema.anyOf.filter((s) => s.type !== 'null') : [schema];
  return kinds.map((s) => (s.enum ? s.enum.join(' | ') : s.type || '')).join(' or ');
}

function range(schema) {
  const parts = [schema, ...(schema.anyOf || [])].flatMap((s) => [
    s.minimum !== undefined && `from ${s.minimum}`, s.exclusiveMinimum !== undefined && `above ${s.exclusiveMinimum}`,
    s.maximum !== undefined && `to ${s.maximum}`, s.exclusiveMaximum !== undefined && `below ${s.exclusiveMaximum}`,
  ]);
  if (String(schema.default ?? '')) parts.push(`default ${schema.default}`); // an empty list says nothing
  return parts.filter(Boolean).join(', ');
}

function table(rows) {
  const head = element('tr', '', ...['name', 'type', 'range', 'meaning'].map((text) => element('th', text)));
  const body = rows.map(([name, schema, required, meaning]) => element('tr', '',
    element('td', name + (required ? ' *' : '')), element('td', kind(schema)), element('td', range(schema)), element('td', meaning)));
  const scroll = element('div', '', element('table', '', head, ...body));
  scroll.className = 'scroll';
  return scroll;
}

function parameters(description, operation) {
  const rows = (operation.parameters || []).map((p) => [p.name, p.schema, p.required, p.description || p.schema.description || '']);
  for (const content of Object.values((operation.requestBody || {}).content || {})) {
    const schema = resolve(description, content.schema);
    for (const [name, property] of Object.entries(schema.properties || {})) {
      rows.push([name, property, (schema.required || []).includes(name), property.description || '']);
    }
  }
  return rows;
}

async function show() {
  const description = await (await fetch('openapi.json')).json();
  const parts = [element('pre', description.info.description)];
  for (const [path, methods] of Object.entries(description.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      parts.push(element('h2', `${method.toUpperCase()} ${path}`), element('p', operation.description || operation.summary));
      const rows = parameters(description, operation);
      if (rows.length) parts.push(table(rows));
      const answers = Object.entries(operation.responses).map(([status, answer]) => {
        const kinds = Object.keys(answer.content || {}).join(', ');
        return element('li', `${status}: ${answer.description}${kinds ? ` (${kinds})` : ''}`);
      });
      parts.push(element('ul', '', ...answers));
    }
  }
  document.getElementById('routes').replaceChildren(...parts);
}

show();
