// The page's address names what it shows: label, n, seed, truncation, confidence, moves and version. A link gives others the
// same pixels, and going back gives the former ones.
'use strict';

const FIELDS = { label: 'label', n: 'n', seed: 'seed', truncation: 'truncation', min_confidence: 'confidence' };

function pin(version) {
  pinned = version;
  $('newest').hidden = !version;
}

// Fill the form from the address. What doesn't fit a field stays as it is.
function readAddress() {
  const values = new URLSearchParams(location.search);
  for (const [name, id] of Object.entries(FIELDS)) {
    const before = $(id).value;
    if (values.has(name)) $(id).value = values.get(name);
    if (!$(id).value || !$(id).checkValidity()) $(id).value = before;
  }
  showMoves();
  setMoves(values.get('moves') || '');
  const version = values.get('version') || '';
  pin(/^[1-9][0-9]{0,8}$/.test(version) ? version : null);
  showValues();
}

function writeAddress(asked, version) {
  const values = new URLSearchParams(asked);
  values.set('version', version);
  const address = `?${values}`;
  if (location.search !== address) history[location.search ? 'pushState' : 'replaceState'](null, '', address);
}

addEventListener('popstate', () => {
  readAddress();
  busy($('draw'), 'Drawing …', draw);
});
$('newest').addEventListener('click', () => {
  pin(null);
  $('form').requestSubmit();
});
$('copy-link').addEventListener('click', () => copy($('copy-link'), location.href, 'In the address bar'));
