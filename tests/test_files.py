"""Files appear whole or not at all."""

import pytest

from visionssm.files import replacing, replacing_pair, write_atomically, write_text


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "new folder" / "table.csv"
    write_text(path, "old")
    with replacing(path, ".csv") as temporary:
        temporary.write_text("new")
        assert temporary.suffix == ".csv" and path.read_text() == "old"
    assert path.read_text() == "new" and path.stat().st_mode & 0o400


def test_what_goes_wrong_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "table.csv"
    write_text(path, "old")

    def fail(file):
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_pair_is_replaced_or_stays(tmp_path):
    path, companion = tmp_path / "model", tmp_path / "weights"
    for text in ("old", "new"):
        with replacing_pair(path, companion) as written:
            for file in written:
                file.write_text(text)
    with pytest.raises(OSError, match="disk full"), replacing_pair(path, companion) as (first, _):
        first.write_text("half")
        raise OSError("disk full")
    assert path.read_text() == companion.read_text() == "new"
    assert sorted(tmp_path.iterdir()) == [path, companion]
