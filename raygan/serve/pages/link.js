// The page's address names what it shows: label, n, seed, truncation, confidence, moves and version. A link gives others the
// same pixels, and going back gives the former ones.
'use strict';

const FIELDS = { label: 'label', n: 'n', seed: 'seed', truncation: 'truncation', min_confidence: 'confidence' };

let unfit = []; // names in the address whose values don't fit the form

function pin(version) {
  pinned = version;
  $('newest').hidden = !version;
}

// Fill the form from the address. What doesn't fit a field stays as it is, and `misfits` says so. A label that isn't
// served is chosen all the same, so that the service says so, and no other label's pictures are shown instead.
function readAddress() {
  const values = new URLSearchParams(location.search);
  const label = values.get('label');
  if (label && ![...$('label').options].some((option) => option.value === label)) $('label').add(new Option(label, label));
  unfit = [];
  for (const [name, id] of Object.entries(FIELDS).filter(([name]) => values.has(name))) {
    const [before, given] = [$(id).value, values.get(name)];
    $(id).value = given;
    const same = $(id).value === given || (given && Number($(id).value) === Number(given)); // a slider rounds
    if (!same || !$(id).value || !$(id).checkValidity()) {
      $(id).value = before;
      unfit.push(name);
    }
  }
  showMoves();
  const moves = values.get('moves') || '';
  setMoves(moves);
  if (chosenMoves() !== withoutEnd(moves.split(',').map(Number))) unfit.push('moves');
  const version = values.get('version') || '';
  const fits = /^[1-9][0-9]{0,8}$/.test(version);
  if (version && !fits) unfit.push('version');
  pin(fits ? version : null);
  showValues();
}

// What the address asked for and the form can't show, once.
function misfits() {
  const names = unfit.join(', ');
  unfit = [];
  return names && `; not as the address asks: ${names}`;
}

function writeAddress(asked, version) {
  const values = new URLSearchParams(asked);
  values.set('version', version);
  const address = `?${values}`;
  if (location.search !== address) history[location.search ? 'pushState' : 'replaceState'](null, '', address);
}

addEventListener('popstate', () => {
  readAddress();
  redraw();
});
$('newest').addEventListener('click', () => {
  pin(null);
  $('form').requestSubmit();
});
$('copy-link').addEventListener('click', () => copy($('copy-link'), location.href, 'In the address bar'));
