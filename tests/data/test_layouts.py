"""Labels from paths: each layout of the table in `raygan.data.labels`, and their kin."""

from __future__ import annotations

import pytest

from raygan.data.folders import annotation_paths
from raygan.data.layouts import guess
from raygan.errors import ConfigurationError


def found(paths, **options):
    """The label of each path."""
    label_of = guess(paths, "photos", **options).label_of
    return [label_of(path) for path in paths]


def several(*patterns, count=6):
    """Paths from patterns with a number in them."""
    return [pattern.format(i) for pattern in patterns for i in range(count)]


@pytest.mark.parametrize(
    ("patterns", "labels"),
    [
        # Kaggle Dogs vs. Cats, with its test folder, as unpacked, and inside a folder of its name
        (("train/cat.{}.jpg", "train/dog.{}.jpg", "test1/{}.jpg"), ["cat", "dog", None]),
        (("dogs-vs-cats/train/cat.{}.jpg", "dogs-vs-cats/train/dog.{}.jpg"), ["cat", "dog"]),
        (("mydata/cat.{}.jpg", "mydata/dog.{}.jpg"), ["cat", "dog"]),
        (("PetImages/Cat/{}.jpg", "PetImages/Dog/{}.jpg"), ["cat", "dog"]),
        (("training_set/cats/cat.{}.jpg", "test_set/dogs/dog.{}.jpg"), ["cat", "dog"]),
        # class folders beside a test folder without
        (("train/cat/{}.jpg", "train/dog/{}.jpg", "test/{}.jpg"), ["cat", "dog", None]),
        (("train_images/a/{}.jpg", "val2017/b/{}.jpg"), ["a", "b"]),
        # Oxford-IIIT Pet
        (("images/great_pyrenees_{}.jpg", "images/Abyssinian_{}.jpg"), ["great_pyrenees", "abyssinian"]),
        # AFHQ: the names tell where photos come from, the folder what they show
        (("train/cat/flickr_cat_{:06}.jpg", "train/cat/pixabay_cat_{:06}.jpg"), ["cat", "cat"]),
        (("cat/whiskers_{}.jpg", "cat/tom_{}.jpg"), ["cat", "cat"]),
        (("train/cat/flickr_{}.jpg", "val/dog/pixabay_{}.jpg"), ["cat", "dog"]),
        # Stanford Dogs, and other folders whose numbers are no part of the name
        (
            ("Images/n02085620-Chihuahua/n02085620_{}.jpg", "Images/n02085782-Japanese_spaniel/n02085782_{}.jpg"),
            ["chihuahua", "japanese_spaniel"],
        ),
        (
            ("001.Black_footed_Albatross/{}.jpg", "002.Laysan_Albatross/{}.jpg"),
            ["black_footed_albatross", "laysan_albatross"],
        ),
        # the same name for two of them: the numbers stay
        (("n02012849-crane/{}.jpg", "n03126707-crane/{}.jpg"), ["n02012849_crane", "n03126707_crane"]),
        # identities, years, a depth that varies
        (("Aaron_Eckhart/Aaron_Eckhart_{:04}.jpg", "Tom_Hanks/Tom_Hanks_{:04}.jpg"), ["aaron_eckhart", "tom_hanks"]),
        (("2019/cats/{}.jpg", "2020/dogs/{}.jpg"), ["cat", "dog"]),
        (("cats/{}.jpg", "cats/indoor/{}.jpg", "dogs/{}.jpg"), ["cat", "cat", "dog"]),
        # Pascal VOC, and other names of several words
        (("VOC2012/JPEGImages/cat_{}.jpg", "VOC2012/JPEGImages/dog_{}.jpg"), ["cat", "dog"]),
        (("face/{}.jpg", "no_face/{}.jpg"), ["face", "no_face"]),
        (("images/flickr_cat_{}.jpg", "images/pixabay_dog_{}.jpg"), ["cat", "dog"]),
        # names made on Windows, and by Roboflow
        (("train\\cats\\{}.jpg", "train\\dogs\\{}.jpg"), ["cat", "dog"]),
        (("train/cat_{}_jpg.rf.3f2a9c.jpg", "train/dog_{}_jpg.rf.77aa01.jpg"), ["cat", "dog"]),
        # CycleGAN's domains, which are split by name
        (("h2z/trainA/n{}.jpg", "h2z/testA/n{}.jpg", "h2z/trainB/n{}.jpg"), ["a", "a", "b"]),
        # splits in the names of class folders, but not of one class alone
        (("train_cat/{}.jpg", "test_cat/{}.jpg", "train_dog/{}.jpg"), ["cat", "cat", "dog"]),
        (("Cats-Train/{}.jpg", "dogs-train/{}.jpg", "dogs-val/{}.jpg"), ["cat", "dog", "dog"]),
        (("crash test/{}.jpg", "dummy/{}.jpg"), ["crash_test", "dummy"]),
        # copies, counts, thumbnails, and characters that nobody sees
        (("cat/{}.jpg", "cat - Copy/{}.jpg", "dog/{}.jpg", "dog (copy)/{}.jpg"), ["cat", "cat", "dog", "dog"]),
        (("Copy of cat/{}.jpg", "cats copy 2/{}.jpg", "cat/{}.jpg", "dog/{}.jpg"), ["cat", "cat", "cat", "dog"]),
        (("cats (120)/{}.jpg", "dogs [98]/{}.jpg"), ["cat", "dog"]),
        (("cat/{}.jpg", "dog/{}.jpg", "thumbnails/cat/{}.jpg"), ["cat", "dog", "cat"]),
        (("cat/{}.jpg", "ca\u200bts/{}.jpg", "\ufeffdog/{}.jpg", "dog\u200f/{}.jpg"), ["cat", "cat", "dog", "dog"]),
        (("👩\u200d🚀 astro/{}.jpg", "dog/{}.jpg"), ["👩\u200d🚀_astro", "dog"]),
        (("🐱/{}.jpg", "🐶/{}.jpg"), ["🐱", "🐶"]),
        (("🐱_{}.jpg", "🐶_{}.jpg"), ["🐱", "🐶"]),
        # photos outside of the only class folder
        (("train/cat/{}.jpg", "test/{}.jpg"), ["cat", None]),
        (("cat/{}.jpg", "IMG_{:04}.jpg"), ["cat", None]),
        (("all/{}.jpg", "dog/{}.jpg"), [None, "dog"]),
        # class folders in a folder with photos that are in none of them
        (("comp/train/happy/{}.jpg", "comp/train/sad/{}.jpg", "comp/test/{}.jpg"), ["happy", "sad", None]),
        (
            (
                "ILSVRC/Data/CLS-LOC/train/n02123045/{}.JPEG",
                "ILSVRC/Data/CLS-LOC/train/n02110185/{}.JPEG",
                "ILSVRC/Data/CLS-LOC/val/{}.JPEG",
            ),
            ["n02123045", "n02110185", None],
        ),
        (("pets/cat/{}.jpg", "pets/dog/{}.jpg", "pets/{}.jpg"), ["cat", "dog", None]),
        (("comp/train/cat/{}.jpg", "comp/test/{}.jpg"), ["cat", None]),
        (("cats/in/{}.jpg", "cats/out/{}.jpg", "cats/{}.jpg"), ["cat"] * 3),
        (("rex/old/{}.jpg", "rex/{}.jpg"), ["rex", "rex"]),
        # test photos whose names may say something else
        (("train/apple_scab/{}.jpg", "train/rust/{}.jpg", "test/AppleScab{}.jpg"), ["apple_scab", "rust", None]),
        (("train/cats/{}.jpg", "train/dogs/{}.jpg", "test/cat_{}.jpg"), ["cat", "dog", "cat"]),
        (("query/rex/{}.jpg", "gallery/rex/{}.jpg", "gallery/tom/{}.jpg"), ["rex", "rex", "tom"]),
        # what a training has left
        (("cat/{}.jpg", "dog/{}.jpg", "outputs/{}.png"), ["cat", "dog", None]),
        # keys, as Spark writes them
        (("split=train/label=cat/{}.jpg", "split=test/label=dog/{}.jpg"), ["cat", "dog"]),
        # folders by origin, and their copies; where they repeat, animals are the classes, inside or outside
        (("google/cat/{}.jpg", "google/dog/{}.jpg", "flickr/cat/{}.jpg", "flickr/dog/{}.jpg"), ["cat", "dog"] * 2),
        (("google/happy/{}.jpg", "google/sad/{}.jpg", "bing/happy/{}.jpg", "bing/sad/{}.jpg"), ["happy", "sad"] * 2),
        (("ann/cats/{}.jpg", "ann/dogs/{}.jpg", "ben/cats/{}.jpg", "ben/dogs/{}.jpg"), ["cat", "dog"] * 2),
        (("cats/in/{}.jpg", "cats/out/{}.jpg", "dogs/in/{}.jpg", "dogs/out/{}.jpg"), ["cat", "cat", "dog", "dog"]),
        (("google images/cat/{}.jpg", "flickr/cat/{}.jpg"), ["cat", "cat"]),
        (("kitchen/cats/{}.jpg", "garden/dogs/{}.jpg", "garden/birds/{}.jpg"), ["cat", "dog", "bird"]),
        (("train/cat/{}.jpg", "train/dog/{}.jpg", "holdout/cat/{}.jpg"), ["cat", "dog", "cat"]),
        (("PetImages/cat/{}.jpg", "PetImages/dog/{}.jpg", "old/PetImages/cat/{}.jpg"), ["cat", "dog", "cat"]),
        (("pug/{}.jpg", "boxer/{}.jpg", "mine/pug/{}.jpg", "mine/boxer/{}.jpg"), ["pug", "boxer", "pug", "boxer"]),
        (("pug/{}.jpg", "boxer/{}.jpg", "mine/pug/{}.jpg", "mine/{}.jpg"), ["pug", "boxer", "mine", "mine"]),
        (("pug/red/{}.jpg", "fox/red/{}.jpg", "fox/tan/{}.jpg", "elk/big/{}.jpg"), ["pug", "fox", "fox", "elk"]),
        # cameras' cards, each of which is one class's
        (("cat/DCIM/100APPLE/{}.jpg", "cat/101APPLE/{}.jpg", "dog/DCIM/100APPLE/{}.jpg"), ["cat", "cat", "dog"]),
    ],
)
def test_layouts_give_their_labels(patterns, labels):
    paths = several(*patterns)
    assert found(paths) == [label for label in labels for _ in range(6)]


@pytest.mark.parametrize(
    ("layout", "expected"), [("auto", ["a", "b"]), ("folders", ["a", "b"]), ("names", ["cat", "dog"])]
)
def test_the_layout_decides_between_folders_and_names(layout, expected):
    paths = several("a/cat.{}.jpg", "b/dog.{}.jpg")
    assert sorted(set(found(paths, layout=layout))) == expected


def test_numbers_are_classes_only_on_request():
    paths = several("0/{}.jpg", "1/{}.jpg")
    with pytest.raises(ConfigurationError, match="--label, or give --layout folders"):
        found(paths)
    assert set(found(paths, layout="folders")) == {"0", "1"}


@pytest.mark.parametrize("folders", [("CAT_00", "CAT_01", "CAT_02"), ("cats (1)", "cats (2)"), ("batch1", "batch2")])
def test_folders_that_differ_by_a_number_only_are_asked_about(folders):
    paths = several(*(f"{folder}/{{}}.jpg" for folder in folders))
    with pytest.raises(ConfigurationError, match=r"--label .* makes them one class; --layout folders"):
        found(paths)
    assert len(set(found(paths, layout="folders"))) == len(folders)
    with pytest.raises(ConfigurationError, match="--label"):
        found(several("{}.jpg"), folder=folders[0], inputs=folders)


@pytest.mark.parametrize(
    "folders", [("DCIM/100APPLE", "DCIM/101APPLE"), ("100CANON", "101MSDCF"), ("DCIM/Camera", "DCIM/Screenshots")]
)
def test_folders_of_a_camera_are_no_classes(folders):
    with pytest.raises(ConfigurationError, match="no labels found"):
        found(several(*(f"{folder}/IMG_{{:04}}.JPG" for folder in folders)))


def test_folders_that_may_be_classes_or_be_inside_classes_are_asked_about():
    paths = several("studio/happy/{}.jpg", "studio/sad/{}.jpg", "street/happy/{}.jpg", "street/sad/{}.jpg")
    with pytest.raises(ConfigurationError, match=r"--layout folders uses street, studio; .*--input uses happy, sad"):
        found(paths)
    assert set(found(paths, layout="folders")) == {"studio", "street"}
    assert set(found([path.partition("/")[2] for path in paths if path.startswith("st")])) == {"happy", "sad"}


def test_a_folder_with_photos_and_several_folders_of_photos_is_asked_about():
    paths = several("rex/indoor/{}.jpg", "rex/outdoor/{}.jpg", "rex/{}.jpg")
    with pytest.raises(ConfigurationError, match=r"--layout folders uses rex; .*--input uses indoor, outdoor"):
        found(paths)
    assert set(found(paths, layout="folders")) == {"rex"}
    assert set(found([path.removeprefix("rex/") for path in paths])) == {"indoor", "outdoor", None}


def test_folders_for_splits_beside_others_are_asked_about():
    paths = several("seg_train/seg_train/sea/{}.jpg", "seg_test/seg_test/sea/{}.jpg", "seg_pred/seg_pred/{}.jpg")
    with pytest.raises(ConfigurationError, match=r"\(seg_test, seg_train\) are named like splits, others \(seg_pred\)"):
        found(paths)
    assert set(found(paths, layout="folders")) == {"seg_train", "seg_test", "seg_pred"}


def test_an_input_among_others_is_a_class_folder():
    paths = several("flickr_cat_{}.jpg", "pixabay_cat_{}.jpg")
    assert set(found(paths, folder="cat", inputs=["cat", "dog"])) == {"cat"}
    assert set(found(several("{}.jpg"), folder="cats", inputs=["cats", "dogs"])) == {"cat"}
    # nor is a folder inside it the class of the photos beside that one
    assert set(found(several("{}.jpg", "indoor/{}.jpg"), folder="cats", inputs=["cats", "dogs"])) == {"cat"}
    # but not if it has class folders itself
    paths = several("cats/{}.jpg", "dogs/{}.jpg")
    assert set(found(paths, folder="mine", inputs=["mine", "yours"])) == {"cat", "dog"}


def test_a_single_input_is_the_class_only_where_the_names_repeat_it():
    paths = several("flickr_cat_{}.jpg", "pixabay_cat_{}.jpg")
    assert set(found(paths, folder="cat")) == {"cat"}
    with pytest.raises(ConfigurationError, match="--label"):
        found(several("{}.jpg"), folder="cats")


def test_a_folder_and_names_that_disagree_are_asked_about():
    paths = several("kakapo/red_{}.jpg", "kakapo/blue_{}.jpg")
    with pytest.raises(ConfigurationError, match="--layout folders or --layout names"):
        found(paths)
    assert set(found(paths, layout="folders")) == {"kakapo"}
    assert set(found(paths, layout="names")) == {"red", "blue"}


def test_a_name_for_each_photo_gives_no_labels():
    with pytest.raises(ConfigurationError, match="3 different ones in 3 file names"):
        found(["rex_1.jpg", "bella_2.jpg", "tom_3.jpg"])


@pytest.mark.parametrize(
    "folder",
    ["img_align_celeba", "faces", "my_dataset", "JPEGImages", "2019", "VOCdevkit/VOC2012/JPEGImages", "coco/val2017"],
)
def test_one_folder_whose_name_says_no_class_is_asked_about(folder):
    with pytest.raises(ConfigurationError, match="--label"):
        found(several(f"{folder}/{{:06}}.jpg"))


@pytest.mark.parametrize(
    "name",
    [
        *("IMG-20200101-WA{:04}", "WhatsApp Image 2020-01-01 at 10.10.{}", "Screenshot from 2020-01-01 10-10-{}"),
        *("IMG_E{:04}", "signal-2020-01-01-{:06}", "received_{}", "AdobeStock_{}", "unnamed ({})", "photo_{}_at_1"),
    ],
)
def test_names_from_phones_and_programs_are_no_labels(name):
    with pytest.raises(ConfigurationError, match=r"--label.*sort them into folders"):
        found(several(f"{name}.jpg", count=20))


def test_files_that_are_named_for_a_photo_are_annotations():
    photos = several("cat/{}.jpg", "dog.{}.jpeg")
    masks = several("cat/{}_mask.png", "cat/{}-Depth.PNG", "dog.{}.label.png")
    assert annotation_paths([*photos, *masks]) == set(masks)
    assert not annotation_paths(several("cat/{}_mask.png", "carnival_mask/{}.jpg", "mask/{}.jpg"))


def test_annotations_beside_photos_are_no_photos():
    photos = several("pets/images/Abyssinian_{}.jpg")
    masks = several("pets/annotations/trimaps/Abyssinian_{}.png", "pets/masks/{}.png")
    assert annotation_paths([*photos, *masks]) == set(masks)
    for opposite in ("no_mask", "without mask", "nomasks", "Non-Mask"):
        classes = several("mask/{}.jpg", f"{opposite}/{{}}.jpg")
        assert not annotation_paths(classes)
        assert not annotation_paths([*classes, *several("test/{}.jpg")])
    masks = several("bottle/ground_truth/broken/{}.png")
    assert annotation_paths([*several("bottle/train/good/{}.png", "bottle/test/broken/{}.png"), *masks]) == set(masks)
    masks = several("VOC/SegmentationClass/{}.png", "VOC/SegmentationObject/{}.png")
    assert annotation_paths([*several("VOC/JPEGImages/{}.jpg"), *masks]) == set(masks)
