// The service's page: requests /v1 and shows the answers. No library, nothing loaded from elsewhere.
'use strict';

const $ = (id) => document.getElementById(id);
const SEED_LIMIT = 2 ** 31;
const PLAIN = /^[\x21-\x7e]+$/; // a token that fits a header
let asking = null; // the promise of a token while the dialog is open
let shown = null; // the query whose samples are on the page
let opened = null; // the sample in the dialog

// The token lives as long as the tab.
async function ask(path, options = {}) {
  for (;;) {
    const token = sessionStorage.getItem('token');
    if (token && !PLAIN.test(token)) { // fetch would throw
      await askForToken(token);
      continue;
    }
    const headers = token ? { Authorization: `Bearer ${token}` } : {};
    const answer = await fetch(path, { ...options, headers });
    if (answer.status === 401) {
      await askForToken(token);
      continue;
    }
    if (!answer.ok) {
      const problem = await answer.json().catch(() => ({}));
      const wait = answer.headers.get('Retry-After');
      throw new Error((problem.detail || `The service answered ${answer.status}`) + (wait ? `; try again in ${wait} s` : ''));
    }
    return answer;
  }
}

// One dialog for all requests that wait for a token. refused: the rejected token, which may have been replaced since.
function askForToken(refused) {
  if (!asking && sessionStorage.getItem('token') !== refused) return Promise.resolve();
  asking ??= new Promise((resolve) => {
    sessionStorage.removeItem('token');
    $('ask-why').hidden = !refused;
    $('ask-why').textContent = refused ? 'The service does not accept that token.' : '';
    $('ask').addEventListener('close', () => {
      sessionStorage.setItem('token', $('token').value.trim());
      $('token').value = '';
      asking = null;
      resolve();
    }, { once: true });
    $('ask').showModal();
  });
  return asking;
}

function say(text, bad = false) {
  $('status').textContent = text;
  $('status').classList.toggle('bad', bad);
}

function isBusy(button) {
  return button.getAttribute('aria-disabled') === 'true';
}

// Run an action, one at a time per button; the button keeps the keyboard focus meanwhile.
async function busy(button, what, work) {
  if (isBusy(button)) return;
  button.setAttribute('aria-disabled', 'true');
  if (what) say(what);
  try {
    await work();
  } catch (error) {
    say(error.message, true);
  } finally {
    button.removeAttribute('aria-disabled');
  }
}

function query(format) {
  const values = new URLSearchParams({
    label: $('label').value, n: $('n').value, seed: $('seed').value, truncation: $('truncation').value, format,
  });
  if (Number($('confidence').value) > 0) values.set('min_confidence', $('confidence').value);
  return values;
}

async function loadModels() {
  const models = await (await ask('/v1/models')).json();
  const labels = Object.keys(models.generators);
  $('label').replaceChildren(...labels.map((label) => new Option(label, label)));
  $('confidence-field').hidden = !models.classifier;
  if (!labels.length) throw new Error('No generator is registered yet: train one, then deploy again.');
}

async function draw() {
  if (!$('label').length) await loadModels();
  const asked = query('json');
  const began = performance.now();
  const answer = await (await ask(`/v1/sample?${asked}`)).json();
  shown = asked;
  $('samples').replaceChildren(...answer.images.map((image) => sample(image, answer.label)));
  $('downloads').hidden = false;
  $('model').textContent = `${answer.model.name}, version ${answer.model.version}`;
  const seconds = ((performance.now() - began) / 1000).toFixed(2);
  const few = asked.has('min_confidence') ? ` of ${answer.drawn} drawn` : '';
  say(`${answer.accepted} ${answer.accepted === 1 ? 'image' : 'images'}${few} in ${seconds} s`);
}

function verdict(image) {
  if (!image.probabilities) return '';
  const [label, share] = Object.entries(image.probabilities).reduce((a, b) => (b[1] > a[1] ? b : a));
  return `${label} ${(100 * share).toFixed(0)} %`;
}

function sample(image, label) {
  const source = `data:image/png;base64,${image.png}`;
  const item = document.createElement('li');
  const button = document.createElement('button');
  button.type = 'button';
  const picture = new Image();
  picture.src = source;
  picture.alt = `Generated ${label}`;
  const seed = document.createElement('span');
  seed.className = 'seed';
  seed.textContent = `seed ${image.seed}`;
  const words = document.createElement('span');
  words.className = 'verdict';
  words.textContent = verdict(image);
  button.append(picture, seed, words);
  button.addEventListener('click', () => enlarge({ ...image, label, source }));
  item.append(button);
  return item;
}

function enlarge(image) {
  opened = image;
  $('large-title').textContent = `${image.label}, seed ${image.seed}`;
  $('large-image').src = image.source;
  $('large-image').alt = `Generated ${image.label}, seed ${image.seed}`;
  $('large-verdict').textContent = image.probabilities
    ? 'Classifier: ' + Object.entries(image.probabilities).map(([l, p]) => `${l} ${(100 * p).toFixed(1)} %`).join(', ')
    : '';
  $('large-download').href = image.source;
  $('large-download').download = `${image.label}-${image.seed}.png`;
  $('large').showModal();
}

async function copySeed() {
  const text = String(opened.seed);
  $('seed').value = text;
  try {
    await navigator.clipboard.writeText(text);
    $('copy').textContent = 'Copied';
  } catch {
    $('copy').textContent = 'In the form'; // no clipboard without HTTPS or permission
  }
  setTimeout(() => { $('copy').textContent = 'Copy seed'; }, 1500);
}

function morphEnd(id) {
  $(id).value = opened.seed;
  $('large').close();
  $(id).focus();
}

async function morph() {
  const values = new URLSearchParams({
    label: $('label').value, seed: $('from').value, to: $('to').value, truncation: $('truncation').value,
    frames: 32, fps: 16, bounce: true,
  });
  const blob = await (await ask(`/v1/interpolate?${values}`)).blob();
  URL.revokeObjectURL($('walk-image').src);
  const address = URL.createObjectURL(blob);
  $('walk-image').src = address;
  $('walk-image').alt = `Generated ${$('label').value} morphing from seed ${$('from').value} to seed ${$('to').value}`;
  $('walk-download').href = address;
  $('walk-download').download = `${$('label').value}-${$('from').value}-${$('to').value}.webp`;
  $('walk').hidden = false;
  say('The morph is playing below.');
}

async function download(format) {
  const values = new URLSearchParams(shown);
  values.set('format', format);
  const address = URL.createObjectURL(await (await ask(`/v1/sample?${values}`)).blob());
  const link = document.createElement('a');
  link.href = address;
  link.download = `${values.get('label')}-${values.get('seed')}.${format === 'grid' ? 'png' : format}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
  say(`Downloading ${link.download}.`);
}

$('form').addEventListener('submit', (event) => {
  event.preventDefault();
  busy($('draw'), 'Drawing …', draw);
});
$('dice').addEventListener('click', () => {
  if (isBusy($('draw'))) return;
  $('seed').value = Math.floor(Math.random() * SEED_LIMIT);
  $('form').requestSubmit();
});
$('truncation').addEventListener('input', () => { $('truncation-value').value = Number($('truncation').value).toFixed(2); });
$('confidence').addEventListener('input', () => {
  const share = Number($('confidence').value);
  $('confidence-value').value = share ? `${Math.round(100 * share)} %` : 'any';
});
$('morph-form').addEventListener('submit', (event) => {
  event.preventDefault();
  busy(event.submitter || $('morph-form').querySelector('button'), 'Drawing the morph …', morph);
});
for (const button of document.querySelectorAll('[data-format]')) {
  button.addEventListener('click', () => busy(button, '', () => download(button.dataset.format)));
}
$('copy').addEventListener('click', copySeed);
$('morph-from').addEventListener('click', () => morphEnd('from'));
$('morph-to').addEventListener('click', () => morphEnd('to'));
$('close').addEventListener('click', () => $('large').close());
$('ask').addEventListener('cancel', (event) => event.preventDefault());
busy($('draw'), 'Loading …', draw);
