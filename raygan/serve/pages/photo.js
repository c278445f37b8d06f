// The classifier's verdict on a photo of yours.
'use strict';

async function askAbout(file) {
  const body = new FormData();
  body.append('images', file);
  const answer = await (await ask('v1/classify', { method: 'POST', body })).json();
  URL.revokeObjectURL($('photo-image').src);
  $('photo-image').src = URL.createObjectURL(file);
  $('photo-verdict').replaceChildren(...shares(answer.images[0].probabilities));
  $('photo-answer').hidden = false;
  const { name, version } = answer.classifier;
  say(`${verdict(answer.images[0])}, says ${name}, version ${version}. It looked at the center square.`);
}

$('photo-form').addEventListener('submit', (event) => {
  event.preventDefault();
  const [file] = $('photo').files;
  if (file) busy($('photo-form').querySelector('button'), 'Asking …', () => askAbout(file));
});
