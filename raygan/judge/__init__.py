"""The judges of generated images, in torch and nothing else: no Ray, no MLflow.

The mental model:

1. `googlenet` builds torchvision's GoogLeNet, writes it to a folder and reads it back as a `Classifier`, which
   gives uint8 images the probability of each label.
2. `animals.AnimalMass` asks an independent ImageNet network how much of an image is a cat or a dog.
3. `distances` compares two sets of images by their feature vectors: KID, FID, precision, recall, density,
   coverage. Features come from `raygan.features`, and a number means nothing without their network's name.

Images are uint8 tensors (n, 3, S, S) of any size S; features are float32 tensors (n, d).
"""
