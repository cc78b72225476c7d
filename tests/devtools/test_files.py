"""A private file is replaced in one step, also when somebody interrupts."""

import os
import stat
from pathlib import Path

import pytest

from mailbox_app.devtools.files import write_private


@pytest.mark.parametrize("is_renamed", [False, True], ids=["before the renaming", "after it"])
def test_an_interrupt_while_a_file_is_replaced_is_told_and_leaves_one_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_renamed: bool
) -> None:
    path, replace = tmp_path / "stack.json", os.replace
    write_private(path, "old")

    def interrupted(building: str, target: Path) -> None:
        if is_renamed:
            replace(building, target)
        raise KeyboardInterrupt  # what the signal handler of mailbox_dev does, wherever it finds it

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_private(path, "new")
    assert os.listdir(tmp_path) == ["stack.json"]
    assert path.read_text() == ("new" if is_renamed else "old")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
