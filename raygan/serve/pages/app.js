// The service's page: requests /v1 and shows the answers. No library, nothing loaded from elsewhere.
// link.js keeps the address, gallery.js the pictures that people keep, photo.js asks about uploads, and moves.js has the
// sliders along directions.
'use strict';

const $ = (id) => document.getElementById(id);
const SEED_LIMIT = 2 ** 31;
const PLAIN = /^[\x21-\x7e]+$/; // a token that fits a header
let asking = null; // the promise of a token while the dialog is open
let shown = null; // the answer on the page: label, version, truncation, moves, seeds
let generators = {}; // what /v1/models says, by label
let pinned = null; // the version that the next drawing must use; null is the newest
let morphed = null; // whose seeds the morph's are: label, version, truncation, moves; null before the first drawing
let opened = null; // the picture in the dialog, and the list that it is from
let openedList = [];

// The token lives as long as the tab.
async function ask(path, options = {}) {
  for (;;) {
    const token = sessionStorage.getItem('token');
    if (token && !PLAIN.test(token)) { // fetch would throw
      await askForToken(token);
      continue;
    }
    const headers = token ? { Authorization: `Bearer ${token}` } : {};
    const answer = await fetch(path, { ...options, headers }).catch(() => {
      throw new Error('The service does not answer: try again in a moment');
    });
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

function formQuery() {
  const values = new URLSearchParams({
    label: $('label').value, n: $('n').value, seed: $('seed').value, truncation: $('truncation').value,
  });
  if (Number($('confidence').value) > 0) values.set('min_confidence', $('confidence').value);
  if (pinned) values.set('version', pinned);
  const moves = chosenMoves();
  if (moves) values.set('moves', moves);
  return values;
}

// Labels come and go with the registry's champions. The chosen one stays, so that nothing is drawn unasked.
async function loadModels() {
  const models = await (await ask('v1/models')).json();
  const served = Object.keys(models.generators);
  const chosen = $('label').value;
  const labels = chosen && !served.includes(chosen) ? [...served, chosen] : served;
  if (labels.join() !== [...$('label')].map((option) => option.value).join()) {
    $('label').replaceChildren(...labels.map((label) => new Option(label, label, false, label === chosen)));
  }
  $('confidence-field').hidden = $('photo-section').hidden = !models.classifier;
  generators = models.generators;
  showMoves();
  if (!labels.length) throw new Error('No generator is registered yet: train one first.');
}

// Not while a dialog asks for the token: one question is enough. An open list of labels doesn't change either.
function followModels() {
  if (document.hidden || asking || document.activeElement === $('label')) return;
  loadModels().catch(() => {}); // the next drawing says what is wrong
}

async function draw() {
  if (!$('label').length) {
    await loadModels();
    readAddress();
  }
  const [asked, address] = [formQuery(), location.search];
  const began = performance.now();
  const answer = await (await ask(`v1/sample?${asked}&format=json`)).json();
  const origin = { label: answer.label, version: answer.model.version, truncation: asked.get('truncation') };
  if (asked.has('moves')) origin.moves = asked.get('moves');
  shown = { ...origin, seeds: answer.images.map((image) => image.seed) };
  const pictures = answer.images.map((image) => ({ ...image, ...origin, source: `data:image/png;base64,${image.png}` }));
  $('samples').replaceChildren(...pictures.map((picture) => tile(picture, pictures)));
  $('downloads').hidden = false;
  $('model').textContent = `${answer.model.name}, version ${answer.model.version}`;
  if (location.search === address) writeAddress(asked, answer.model.version); // else somebody went back meanwhile
  morphOf(origin);
  const seconds = ((performance.now() - began) / 1000).toFixed(2);
  const few = asked.has('min_confidence') ? ` of ${answer.drawn} drawn` : '';
  say(`${answer.accepted} ${answer.accepted === 1 ? 'image' : 'images'}${few} in ${seconds} s${misfits()}`);
}

function verdict(picture) {
  if (!picture.probabilities) return '';
  const [label, share] = Object.entries(picture.probabilities).reduce((a, b) => (b[1] > a[1] ? b : a));
  return `${label} ${(100 * share).toFixed(0)} %`;
}

// Each label's probability in words and as a bar, the most probable first.
function shares(probabilities) {
  return Object.entries(probabilities || {}).sort((a, b) => b[1] - a[1]).map(([label, share]) => {
    const meter = document.createElement('meter');
    meter.value = share;
    meter.setAttribute('aria-hidden', 'true'); // the number says it
    return row('li', row('span', label), meter, row('span.share', `${(100 * share).toFixed(1)} %`));
  });
}

function row(name, ...children) {
  const [tag, kind] = name.split('.');
  const made = document.createElement(tag);
  if (kind) made.className = kind;
  made.append(...children);
  return made;
}

// A picture in a list; pictures: the list, through which the dialog moves.
function tile(picture, pictures) {
  const image = new Image();
  image.src = picture.source;
  image.alt = `Generated ${picture.label}`;
  const button = row('button', image, row('span.seed', `seed ${picture.seed}`), row('span.verdict', verdict(picture)));
  button.type = 'button';
  button.addEventListener('click', () => enlarge(picture, pictures));
  return row('li', button);
}

// Arrow keys move between the pictures of a list.
function moveByArrows(event) {
  const buttons = [...event.currentTarget.querySelectorAll('button')];
  const here = buttons.indexOf(document.activeElement);
  const perRow = buttons.filter((button) => button.offsetTop === buttons[0].offsetTop).length;
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -perRow, ArrowDown: perRow }[event.key];
  if (here < 0 || !step || !buttons[here + step]) return;
  event.preventDefault();
  buttons[here + step].focus();
}

function enlarge(picture, pictures = openedList) {
  opened = picture;
  openedList = pictures;
  const name = `${picture.label}, seed ${picture.seed}`;
  $('large-title').textContent = name;
  $('large-image').src = picture.source;
  $('large-image').alt = `Generated ${name}`;
  $('large-verdict').replaceChildren(...shares(picture.probabilities));
  $('large-download').href = picture.source;
  $('large-download').download = `${picture.label}-${picture.seed}.png`;
  showWhetherKept();
  if (!$('large').open) $('large').showModal();
}

function turn(step) {
  const count = openedList.length;
  if (count) enlarge(openedList[(openedList.indexOf(opened) + step + count) % count]);
}

// Copy a text, and say so on the button. fallback: what it says without HTTPS or permission.
async function copy(button, text, fallback) {
  const label = button.dataset.label ??= button.textContent; // it may still say that it copied
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = 'Copied';
  } catch {
    button.textContent = fallback;
  }
  setTimeout(() => { button.textContent = label; }, 1500);
}

function morphOf(origin) {
  morphed = origin;
  $('morph-of').textContent = `of ${origin.label}, version ${origin.version}`;
}

function morphEnd(id) {
  const { label, version, truncation, moves } = opened;
  morphOf({ label, version, truncation, ...(moves && { moves }) });
  $(id).value = opened.seed;
  $('large').close();
  $(id).focus();
}

async function morph() {
  const [from, to] = [$('from').value, $('to').value];
  const origin = morphed || { label: $('label').value };
  const values = new URLSearchParams({ ...origin, seed: from, to, frames: 32, fps: 16, bounce: true, format: 'webp' });
  const blob = await (await ask(`v1/interpolate?${values}`)).blob();
  URL.revokeObjectURL($('walk-image').src);
  const address = URL.createObjectURL(blob);
  $('walk-image').src = address;
  $('walk-image').alt = `Generated ${values.get('label')} morphing from seed ${from} to seed ${to}`;
  $('walk-download').href = address;
  $('walk-download').download = `${values.get('label')}-${from}-${to}.webp`;
  $('walk').hidden = false;
  say('The morph is playing below.');
}

// What is on the page, not what the service would draw by now.
async function download(format) {
  const values = new URLSearchParams({ ...shown, format });
  const address = URL.createObjectURL(await (await ask(`v1/sample?${values}`)).blob());
  const link = document.createElement('a');
  link.href = address;
  link.download = `${shown.label}-${shown.seeds[0]}.${format === 'grid' ? 'png' : format}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
  say(`Downloading ${link.download}.`);
}

function showValues() {
  $('truncation-value').value = Number($('truncation').value).toFixed(2);
  const share = Number($('confidence').value);
  $('confidence-value').value = share ? `${Math.round(100 * share)} %` : 'any';
}

$('form').addEventListener('submit', (event) => {
  event.preventDefault();
  busy($('draw'), 'Drawing …', draw);
});
$('form').addEventListener('input', showValues);
$('label').addEventListener('change', () => { // versions and directions are a label's own
  pin(null);
  setMoves('');
  showMoves();
});
$('dice').addEventListener('click', () => {
  if (isBusy($('draw'))) return;
  $('seed').value = Math.floor(Math.random() * SEED_LIMIT);
  $('form').requestSubmit();
});
$('morph-form').addEventListener('submit', (event) => {
  event.preventDefault();
  busy(event.submitter || $('morph-form').querySelector('button'), 'Drawing the morph …', morph);
});
for (const button of document.querySelectorAll('[data-format]')) {
  button.addEventListener('click', () => busy(button, '', () => download(button.dataset.format)));
}
for (const list of document.querySelectorAll('.pictures')) list.addEventListener('keydown', moveByArrows);
$('copy').addEventListener('click', () => {
  $('seed').value = opened.seed;
  copy($('copy'), String(opened.seed), 'In the form');
});
$('morph-from').addEventListener('click', () => morphEnd('from'));
$('morph-to').addEventListener('click', () => morphEnd('to'));
$('previous').addEventListener('click', () => turn(-1));
$('next').addEventListener('click', () => turn(1));
$('large').addEventListener('keydown', (event) => {
  if (event.key === 'ArrowLeft' || event.key === 'ArrowRight') turn(event.key === 'ArrowLeft' ? -1 : 1);
});
$('walk-stop').addEventListener('click', () => { $('walk').hidden = true; });
$('close').addEventListener('click', () => $('large').close());
$('ask').addEventListener('cancel', (event) => event.preventDefault());
setInterval(followModels, 10000);
document.addEventListener('visibilitychange', followModels);
addEventListener('DOMContentLoaded', () => busy($('draw'), 'Loading …', draw));
