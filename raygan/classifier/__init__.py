"""GoogLeNet classifiers: trained on real photos, generated images or both, and used to judge generators.

In the order data flows: `mixture` puts the training images together; `step` takes one optimizer step (from
`imagenet` weights if asked); `loop` runs many and validates; `worker` does that on each rank of a Ray Train job, which
`classify` starts. Of the validation photos, `validation` lets half choose the best checkpoint. The others measure it,
with the pictures of `report`, and `promotion` decides whether it is served. `usefulness` compares many such trainings:
it asks when generated images help.
"""
