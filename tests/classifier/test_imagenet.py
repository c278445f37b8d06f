"""Starting from ImageNet weights."""

import http.client
import urllib.error

import pytest
import torch

from raygan.classifier.imagenet import load_imagenet_weights
from raygan.classifier.settings import ClassifierOptions
from raygan.classifier.step import ClassifierStep
from raygan.errors import RayganError
from raygan.models.googlenet import build_googlenet


def test_only_the_last_layers_start_new(tmp_path):
    imagenet = build_googlenet(1000)
    torch.save(imagenet.state_dict(), tmp_path / "imagenet.pth")
    weights = load_imagenet_weights(str(tmp_path / "imagenet.pth"), auxiliary=True)
    step = ClassifierStep(2, ClassifierOptions(batch_size=4), total=4, weights=weights)
    assert torch.equal(step.net.inception5b.branch1.conv.weight, imagenet.inception5b.branch1.conv.weight)
    assert step.net.fc.out_features == 2
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "other.pth")
    torch.save({**imagenet.state_dict(), "conv1.conv.weight": torch.zeros(64, 1, 7, 7)}, tmp_path / "shape.pth")
    for name in ("other.pth", "none.pth", "shape.pth"):
        with pytest.raises(RayganError, match="does not hold GoogLeNet"):
            load_imagenet_weights(str(tmp_path / name), auxiliary=True)
    torch.save({**imagenet.state_dict(), "conv1.bn.bias": torch.full((64,), torch.nan)}, tmp_path / "nan.pth")
    with pytest.raises(RayganError, match=r"NaN or infinite weights, in conv1\.bn\.bias"):
        load_imagenet_weights(str(tmp_path / "nan.pth"), auxiliary=True)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (urllib.error.URLError("Name or service not known"), "not known"),
        (http.client.IncompleteRead(b"half"), "IncompleteRead"),
        (RuntimeError('invalid hash value (expected "a", got "b")'), "invalid hash"),
    ],
)
def test_a_failed_download_is_explained(monkeypatch, error, says):
    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    with pytest.raises(RayganError, match=rf"can't be downloaded .*{says}.*give the path"):
        load_imagenet_weights(None, auxiliary=True)
