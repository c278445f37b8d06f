// Pictures that people keep, in this browser's storage: a few kilobytes each, with all that it takes to draw them again.
'use strict';

const KEPT = 'raygan.kept';
const MOST_KEPT = 200;

function kept() {
  try {
    const found = JSON.parse(localStorage.getItem(KEPT) || '[]');
    return Array.isArray(found) ? found.filter((picture) => String(picture.source).startsWith('data:image/png;base64,')) : [];
  } catch {
    return [];
  }
}

function isSame(one, other) {
  return ['label', 'version', 'seed', 'truncation', 'moves'].every((name) => String(one[name]) === String(other[name]));
}

function showKept() {
  const pictures = kept();
  $('kept').replaceChildren(...pictures.map((picture) => tile(picture, pictures)));
  $('kept-none').hidden = pictures.length > 0;
  if (opened) showWhetherKept();
}

// Leaves the list alone, one of whose pictures may have the keyboard's focus.
function showWhetherKept() {
  const has = kept().some((picture) => isSame(picture, opened));
  $('keep').setAttribute('aria-pressed', has);
  $('keep').textContent = has ? 'Kept' : 'Keep';
}

function toggleKept() {
  const { label, version, seed, truncation, moves, probabilities, source } = opened;
  const others = kept().filter((picture) => !isSame(picture, opened));
  const had = others.length < kept().length;
  const pictures = had ? others : [{ label, version, seed, truncation, moves, probabilities, source }, ...others];
  let full = pictures.length > MOST_KEPT && `${MOST_KEPT} pictures are kept`;
  try {
    if (!full) localStorage.setItem(KEPT, JSON.stringify(pictures));
  } catch {
    full = 'This browser has no room for more pictures';
  }
  if (full) {
    $('large').close(); // it covers the status
    say(`${full}: open one that you kept, and press Kept.`, true);
  }
  showKept();
}

$('keep').addEventListener('click', toggleKept);
addEventListener('storage', showKept); // another tab
showKept();
