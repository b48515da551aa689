"""``outpost-edge inspect``: a real engine over a folder, its CSV, its contact sheet, its exit codes."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from onnx_releases import EMBED, INSPECT, write_onnx_release
from pictures import plain
from PIL import Image

from edge_agent.contact_sheet import MARGIN, SIDE, Cell, draw_sheet, thumbnail
from edge_agent.engines.encoder_calls import Inspected


def inspect(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edge_agent.cli", "inspect", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def welds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release for which the dark is a defect from the middle of the scale on."""
    folder = tmp_path_factory.mktemp("models") / "welds"
    write_onnx_release(folder, INSPECT)
    return folder


def test_a_folder_becomes_a_table_and_a_sheet(welds: Path, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    (parts / "line 2").mkdir(parents=True)
    for name, color in [("a.png", "white"), ("b.PNG", "#303030"), ("line 2/c,d.jpg", "black")]:
        (parts / name).write_bytes(plain(color, (60, 40)))
    (parts / "cut.png").write_bytes(plain("red")[:40])
    (parts / "notes.txt").write_text("no picture")
    ran = inspect(parts, "--model", welds, "--out", tmp_path / "results.csv", "--json")
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert (told["inspected"], told["defects"], list(told["unread"])) == (3, 2, ["cut.png"])
    assert told["release"].startswith("sha256:") and "cut.png: " in ran.stderr
    rows = list(csv.DictReader(io.StringIO((tmp_path / "results.csv").read_text())))
    assert [(row["file"], row["verdict"]) for row in rows] == [
        ("a.png", "good"),
        ("b.PNG", "defect"),
        ("cut.png", ""),
        ("line 2/c,d.jpg", "defect"),
    ]
    assert float(rows[3]["score"]) == pytest.approx(1) and rows[3]["threshold"] == "0.5"
    assert "a picture" in rows[2]["error"]
    with Image.open(told["sheet"]) as sheet:
        row = 2 * MARGIN + 20 + SIDE // 2
        middle = [sheet.getpixel((MARGIN + SIDE // 2 + number * (SIDE + MARGIN), row)) for number in range(3)]
    # The darkest comes first, glowing; the bright one last, as it is.
    assert middle[0][0] > 150 > 60 > middle[0][1] and middle[2] == (255, 255, 255)


def test_the_worst_are_shown_and_no_sheet_is_drawn_when_none_is_wanted(welds: Path, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    parts.mkdir()
    for number in range(12):
        (parts / f"{number:02}.png").write_bytes(plain(f"#{number * 15:02x}{number * 15:02x}00"))
    out = tmp_path / "results.csv"
    sheet = tmp_path / "two.png"
    ran = inspect(parts, "--model", welds, "--out", out, "--sheet", sheet, "--shown", 2)
    assert ran.returncode == 0 and "12 inspected" in ran.stdout
    with Image.open(sheet) as drawn:
        assert drawn.height == 3 * MARGIN + 20 + (SIDE + 44 + MARGIN)
    sheet.unlink()
    ran = inspect(parts, "--model", welds, "--out", out, "--sheet", sheet, "--shown", 0, "--json")
    assert json.loads(ran.stdout)["sheet"] is None and not sheet.exists()


def test_wrong_use_and_folders_of_nothing(welds: Path, tmp_path: Path) -> None:
    write_onnx_release(tmp_path / "minilm", EMBED)
    parts = tmp_path / "parts"
    parts.mkdir()
    out = tmp_path / "results.csv"
    ran = inspect(parts, "--model", welds, "--out", out)
    assert ran.returncode == 2 and "holds no picture" in ran.stderr
    ran = inspect(parts, "--model", tmp_path / "minilm", "--out", out)
    assert ran.returncode == 2 and "not made to inspect" in ran.stderr
    (parts / "cut.png").write_bytes(b"\x89PNG")
    ran = inspect(parts, "--model", welds, "--out", tmp_path / "nowhere" / "results.csv")
    assert ran.returncode == 2 and "--out" in ran.stderr
    ran = inspect(parts, "--model", welds, "--out", out)
    assert ran.returncode == 1 and "cut.png" in out.read_text()
    damaged = tmp_path / "damaged"
    write_onnx_release(damaged, INSPECT)
    (damaged / "model.onnx").write_bytes(b"other")
    ran = inspect(parts, "--model", damaged, "--out", out)
    assert ran.returncode == 3 and len(ran.stderr.splitlines()) == 1


@pytest.mark.parametrize("size", [(40, 400), (400, 40), (1, 1)])
def test_pictures_of_any_shape_have_room(size: tuple[int, int]) -> None:
    grey = io.BytesIO()
    Image.new("L", (8, 8), 255).save(grey, "PNG")
    found = Inspected(2.0, True, 1.0, (0.0, 0.0, *map(float, size)), grey.getvalue())
    cell = thumbnail("a" * 300 + "\udce9.png", plain("white", size), found)
    assert max(cell.picture.size) == SIDE
    draw_sheet("title", [cell, Cell("", "good", 0.0, 1.0, cell.picture)])
