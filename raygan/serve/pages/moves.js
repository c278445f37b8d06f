// Sliders that move the latents along a generator's strongest directions. What each changes is for the eye to say.
'use strict';

const SLIDERS = 6;
const FARTHEST = 6; // latents are about 14 long; beyond, pictures break

function sliders() {
  return [...$('moves').querySelectorAll('input')];
}

// Moves as the API takes them, without the zeros at the end; empty in the middle.
function withoutEnd(values) {
  return values.join().replace(/(^|,)0(,0)*$/, '');
}

function chosenMoves() {
  return withoutEnd(sliders().map((slider) => slider.value));
}

function setMoves(text) {
  const values = text.split(',');
  sliders().forEach((slider, index) => {
    slider.value = Number(values[index]) || 0;
    slider.dispatchEvent(new Event('input', { bubbles: true }));
  });
}

// Draw again, after the drawing that is under way.
function redraw() {
  clearTimeout(redraw.timer);
  if (isBusy($('draw'))) redraw.timer = setTimeout(redraw, 50);
  else $('form').requestSubmit();
}

// As many sliders as the chosen generator has directions.
function showMoves() {
  const count = Math.min(SLIDERS, generators[$('label').value]?.directions || 0);
  $('moves-field').hidden = !count;
  if (sliders().length === count) return;
  $('moves').replaceChildren(...[...Array(count).keys()].map((index) => {
    const slider = Object.assign(document.createElement('input'), {
      id: `move-${index}`, type: 'range', min: -FARTHEST, max: FARTHEST, step: 0.5, value: 0,
    });
    const output = row('output', '0');
    const label = row('label', `Direction ${index + 1} `, output);
    label.htmlFor = slider.id;
    slider.addEventListener('input', () => { output.value = slider.value; });
    slider.addEventListener('change', redraw); // when it is let go
    return row('div.field', label, slider);
  }));
}

$('moves-reset').addEventListener('click', () => {
  setMoves('');
  redraw();
});
