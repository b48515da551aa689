"""Folders of images: what is refused before and while decoding, copies, splits, the card."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from compile.data import images
from compile.data.images import LabelledImage, Limits, Reading
from compile.errors import BadData

SMALL = Limits(pixels=10_000)


def quiet(done, note):
    pass


def encoded(seed, kind="PNG", size=(20, 12)):
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def bomb(width, height):
    """A PNG of a few bytes whose header claims any size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.fixture
def root(tmp_path):
    for label, count in (("good", 6), ("hole", 3)):
        (tmp_path / label).mkdir()
        for number in range(count):
            (tmp_path / label / f"{number}.png").write_bytes(
                encoded(f"{label}{number}".encode()[0] + number * 7)
            )
    return tmp_path


def read(root, labels=("good", "hole")):
    return images.read_images(root, labels, SMALL, quiet)


def test_a_sound_folder_is_read_with_sizes_and_statistics(root):
    reading = read(root)
    assert len(reading.images) == 9 and not reading.bad and not reading.copies
    assert {(one.width, one.height) for one in reading.images} == {(20, 12)}
    card = images.card(reading, images.split_by_label(reading_with(40), None, 1))
    assert card["images"] == {"good": 6, "hole": 3} and card["sizes"] == {"20 x 12": 9}


def test_broken_images_are_named_and_refused_unless_the_good_ones_are_asked_for(root):
    jpeg = encoded(99, "JPEG")
    (root / "good" / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (root / "good" / "text.png").write_text("no image")
    (root / "hole" / "bomb.png").write_bytes(bomb(9_000, 9_000))
    (root / "hole" / "huge.png").write_bytes(bomb(60_000, 60_000))
    reading = read(root)
    reasons = dict(reading.bad)
    assert set(reasons) == {"good/cut.jpg", "good/text.png", "hole/bomb.png", "hole/huge.png"}
    assert "9000 x 9000" in reasons["hole/bomb.png"] and "at most 10000" in reasons["hole/huge.png"]
    with pytest.raises(BadData, match="4 bad images") as refused:
        images.refuse_bad(reading, keep_good=False)
    assert "good/cut.jpg" in str(refused.value)
    images.refuse_bad(reading, keep_good=True)
    assert len(reading.images) == 9


def test_a_bomb_is_refused_before_its_pixels_exist(root):
    import tracemalloc

    (root / "good" / "bomb.png").write_bytes(bomb(9_000, 9_000))
    read(root)
    tracemalloc.start()
    assert [name for name, _ in read(root).bad] == ["good/bomb.png"]
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


def test_a_file_above_the_limit_is_not_even_read(root):
    (root / "good" / "long.png").write_bytes(encoded(5) + b"\0" * 5_000)
    limits = Limits(file_bytes=4_000)
    assert "limit is 4000" in dict(images.read_images(root, ["good"], limits, quiet).bad)["good/long.png"]


def test_copies_are_found_by_their_pixels_and_contradictions_refused(root):
    with Image.open(root / "good" / "0.png") as image:
        image.save(root / "good" / "again.bmp")
        image.save(root / "hole" / "same.png")
    reading = read(root)
    assert reading.copies == (("good/again.bmp", "good/0.png"),)
    assert reading.bad[0][0] == "hole/same.png" and "another label" in reading.bad[0][1]


def test_a_folder_without_good_images_is_named(root, tmp_path):
    with pytest.raises(BadData, match="there are no images of 'fine'"):
        read(root, ("fine", "hole"))
    (root / "empty").mkdir()
    with pytest.raises(BadData, match="holds none of"):
        read(root, ("empty",))


def test_too_few_good_images_are_counted(root):
    with pytest.raises(BadData, match="6 good images of 'good'; 9 are needed"):
        images.split_good_and_defects(read(root), "good", {"train": 4, "calibration": 3, "test": 2}, 3, 1)


def reading_with(count, labels=("good", "hole"), order=1):
    listed = [
        LabelledImage(f"{label}/{n}.png", label, f"{label}{n}", 8, 8, 1.0, 1.0)
        for label in labels
        for n in range(count)
    ]
    return Reading(tuple(listed[::order]), (), ())


@settings(deadline=None, max_examples=40)
@given(st.integers(10, 60), st.integers(1, 20), st.integers(0, 99))
def test_splits_share_nothing_and_do_not_depend_on_order(count, defects, seed):
    counts = {"train": count // 2, "calibration": count // 4, "test": count // 8}
    made = [
        images.split_good_and_defects(reading_with(count, order=order), "good", counts, defects, seed)
        for order in (1, -1)
    ]
    assert made[0] == made[1] and images.digest(made[0]) == images.digest(made[1])
    parts = [*made[0].train, *made[0].calibration, *made[0].test]
    assert len(parts) == len(set(parts)) == sum(counts.values()) + min(defects, count)
    assert {one.label for one in (*made[0].train, *made[0].calibration)} <= {"good"}


@settings(deadline=None, max_examples=40)
@given(st.integers(5, 60), st.integers(0, 99))
def test_labelled_splits_hold_every_label(count, seed):
    made = images.split_by_label(reading_with(count, ("a", "b", "c")), None, seed)
    for part in (made.train, made.calibration, made.test):
        assert {one.label for one in part} == {"a", "b", "c"}
    assert len(made.train) + len(made.calibration) + len(made.test) == 3 * count


def test_stored_splits_come_back(tmp_path):
    made = images.split_by_label(reading_with(12), 10, 3)
    images.write_image_splits(tmp_path, made)
    assert images.read_image_splits(tmp_path) == made
