"""Emoji drawn from Debian's font, and files that are missing or of another kind."""

from pathlib import Path

import pytest
import torch

from ddpm_cli.config import Emoji
from ddpm_cli.data import emoji
from ddpm_cli.data.sources import load_examples
from ddpm_cli.errors import UserError

INSTALLED = pytest.mark.skipif(not (emoji.FONT.exists() and emoji.LIST.exists()), reason="the emoji are not installed")
FIVE = """# group: Smileys & Emotion
1F600                                                  ; fully-qualified     # 😀 E1.0 grinning face
263A                                                   ; unqualified         # ☺ E0.6 smiling face
# group: Flags
1F1E6 1F1F9                                            ; fully-qualified     # 🇦🇹 E2.0 flag: Austria
"""


def options(**changes: object) -> Emoji:
    values = {"root": None, "image_size": 32, "channels": 3, "flip": False, "font": None, "list": None}
    return Emoji(**(values | changes))  # type: ignore[arg-type]


@pytest.fixture
def five(tmp_path: Path) -> str:
    (tmp_path / "list.txt").write_text(FIVE, encoding="utf-8")
    return str(tmp_path / "list.txt")


@INSTALLED
def test_an_austrian_flag_is_red_white_red(five: str) -> None:
    both = [load_examples(options(list=five, image_size=34), train) for train in (True, False)]
    assert both[0].classes == ["smileys_emotion", "flags"]
    values, labels = (torch.cat([getattr(one, key) for one in both]).int() for key in ("values", "labels"))
    assert sorted(labels.tolist()) == [0, 1]
    flag = values[labels == 1][0]
    red, white, again = (flag[:, row, 17] for row in (10, 17, 24))
    for stripe in (red, again):
        assert stripe[0] > 180
        assert stripe[1:].max() < 100
    assert white.min() > 200
    assert (flag[:, 0, 0] == 255).all()  # the background


@INSTALLED
def test_all_emoji_are_split_into_nine_classes() -> None:
    train, test = (load_examples(options(image_size=8, channels=1), train) for train in (True, False))
    assert len(train) + len(test) > 3000
    assert 0.08 < len(test) / (len(train) + len(test)) < 0.12
    assert train.classes == test.classes
    assert len(train.classes) == 9
    assert (torch.bincount(train.labels, minlength=9) > 50).all()  # type: ignore[arg-type]
    assert train.values.shape[1:] == (1, 8, 8)
    assert train.values.float().std(dim=0).min() > 5  # they differ at each pixel


@INSTALLED
def test_drawn_emoji_are_read_from_the_cache(five: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_examples(options(list=five), True)
    monkeypatch.setattr(emoji, "_draw_all", lambda *args: pytest.fail("drawn again"))
    again = load_examples(options(list=five), True)
    assert torch.equal(first.values, again.values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"list": "nowhere"},
            "dataset.list=nowhere: cannot be read (No such file or directory); name a",
        ),
        ({"list": emoji.__file__}, "has no fully-qualified emoji; name a file like"),
        (
            {"font": "nowhere"},
            "dataset.font=nowhere: cannot be read (No such file or directory); name a",
        ),
        ({"font": __file__}, f"dataset.font={__file__}: has no bitmaps of 109 points"),
    ],
)
def test_unusable_files_are_named(changes: dict[str, str], message: str, five: str) -> None:
    with pytest.raises(UserError) as caught:
        load_examples(options(**({"list": five} | changes)), True)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
