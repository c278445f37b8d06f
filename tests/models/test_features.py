"""Feature networks."""

from __future__ import annotations

import pytest
import torch
from torchvision.models import GoogLeNet, resnet18
from torchvision.transforms.functional import normalize

from raygan.errors import ConfigurationError
from raygan.models.features import inception_v3, load_features


def test_an_images_features_do_not_depend_on_the_images_beside_it():
    features = load_features("efficientnet_lite0")
    images = torch.randint(0, 256, (9, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    vectors = features(images)
    assert vectors.shape == (9, features.dim)
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(features(images[4:5]), vectors[4:5], rtol=1e-4, atol=1e-4)
    assert features(images[:0]).shape == (0, features.dim)


@pytest.mark.parametrize("name", ["efficientnet_lite0", "efficientnet_lite2"])
def test_the_weights_are_those_of_a_network_that_knows_images(name):
    """Stripes in two directions are more similar to each other than to a ramp.

    With weights in the wrong layers, all images would be about equally similar.
    """
    features = load_features(name)
    y, x = torch.meshgrid(torch.arange(128), torch.arange(128), indexing="ij")
    stripes = ((x // 4) % 2 * 255).to(torch.uint8).expand(1, 3, 128, 128)
    ramp = (y * 2).clamp(0, 255).to(torch.uint8).expand(1, 3, 128, 128)
    vectors = torch.nn.functional.normalize(features(torch.cat([stripes, stripes.transpose(2, 3), ramp])), dim=1)
    similar = vectors @ vectors.T
    assert similar[0, 1] > similar[0, 2]
    assert similar[0, 2] < 0.6


def test_googlenet_from_a_file(tmp_path):
    net = GoogLeNet(num_classes=2, aux_logits=True, init_weights=False)
    torch.save(net.state_dict(), tmp_path / "mine.pth")
    features = load_features(str(tmp_path / "mine.pth"))
    assert features.name == "googlenet_mine"
    assert features(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)).shape == (2, 1024)


def test_a_timm_network_with_weights_from_a_file(tmp_path):
    """Against torchvision's own network: its weights, its mean and deviation."""
    net = resnet18()
    torch.save(net.state_dict(), tmp_path / "mine.pth")
    features = load_features(f"resnet18:{tmp_path}/mine.pth")
    images = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    net.fc = torch.nn.Identity()
    scaled = normalize(images / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    with torch.inference_mode():
        torch.testing.assert_close(features(images), net.eval()(scaled), rtol=1e-4, atol=1e-4)
    assert (features.name, features.dim) == ("resnet18_mine", 512)
    with pytest.raises(ConfigurationError, match=r"does not hold weights of resnet34: \d+ are missing"):
        load_features(f"resnet34:{tmp_path}/mine.pth")
    for name in ("resnet", "resnet18.no_such_tag"):
        with pytest.raises(ConfigurationError, match=rf"'{name}' in .* is not an architecture of timm"):
            load_features(f"{name}:{tmp_path}/mine.pth")


@pytest.mark.parametrize("content", [None, b"no weights"])
def test_files_and_names_of_no_network_are_refused(tmp_path, content):
    path = tmp_path / "net.pth"
    if content is None:
        torch.save({"a": torch.zeros(1)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="GoogLeNet"):
        load_features(str(path))
    with pytest.raises(
        ConfigurationError, match="give efficientnet_lite0, efficientnet_lite2, inception_v3, a classifier"
    ):
        load_features("resnet")


def test_a_download_of_inception_s_weights_is_announced_unless_they_are_there(tmp_path, monkeypatch, capsys):
    from torch_fidelity import feature_extractor_inceptionv3 as fidelity

    def unreachable(*args, **options):
        raise OSError("unreachable")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(fidelity, "FeatureExtractorInceptionV3", unreachable)
    for said in (f"downloading Inception's weights (91 MB) from {fidelity.URL_INCEPTION_V3}\n", ""):
        with pytest.raises(ConfigurationError, match=r"can't be downloaded \(unreachable\)"):
            inception_v3()
        assert capsys.readouterr().err == said
        (tmp_path / "checkpoints").mkdir(exist_ok=True)
        (tmp_path / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth").touch()
