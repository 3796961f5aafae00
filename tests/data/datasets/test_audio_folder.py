"""Recordings on disk: class folders, tables with labels, folds and speakers, texts, bad input."""

import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data.datasets.audio_folder import read_sounds, read_speech
from data.datasets.line_folder import split_lines
from data.datasets.splits import make_split
from tests.data.audio.tones import tone
from tests.data.audio.wavs import write_wav

SHARED = Path(__file__).parents[3].parent / "shared" / "data"


def fill(root: Path, *names: str) -> Path:
    """Writes recordings, each of another length."""
    for number, name in enumerate(names):
        write_wav(root / name, tone(440, 0.01 + number / 8_000, 8_000))
    return root


def test_class_folders(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "Geräusch")
    fill(tmp_path, "dog/1.WAV", "dog/deep/2.Flac", f"{decomposed}/ü 1.ogg", f"{decomposed}/2.mp3")
    fill(tmp_path, "dog/notes.docx", "loose.wav")
    files = read_sounds(tmp_path)
    assert files.class_names == ("Geräusch", "dog")
    assert files.names == ("Geräusch/2.mp3", "Geräusch/ü 1.ogg", "dog/1.WAV", "dog/deep/2.Flac")
    assert "1 recordings lie outside" in " ".join(files.notes)
    assert all(Path(path).is_file() for path in files.paths)


def test_a_table_of_digits_and_speakers(tmp_path: Path) -> None:
    names = [f"{digit}_{who}_{n}.wav" for digit in "01" for who in ("ann", "bob") for n in range(3)]
    fill(tmp_path, *names)
    rows = [f"{name},{name[0]},{name.split('_')[1]}" for name in names]
    (tmp_path / "digits.csv").write_text("\n".join(["file,digit,speaker", *rows]))
    files = read_sounds(list_file=tmp_path / "digits.csv")
    assert files.class_names == ("0", "1")
    assert set(files.groups) == {"ann", "bob"}
    split = make_split(files, validation_share=0.4, test_share=0.0)
    by_split = {
        name: {files.groups[i] for i in range(len(files)) if split.splits[i] == name}
        for name in ("train", "validation")
    }
    assert not by_split["train"] & by_split["validation"]
    pattern = read_sounds(list_file=tmp_path / "digits.csv", group_pattern=r"_(\d)$")
    assert set(pattern.groups) == {"0", "1", "2"}


def test_folds_of_a_table(tmp_path: Path) -> None:
    names = [f"{label}{n}.wav" for label in "ab" for n in range(3)]
    fill(tmp_path, *names)
    table = tmp_path / "t.tsv"
    rows = [f"{name}\t{name[0]}\t{int(name[1]) + 1}" for name in names]
    table.write_text("\n".join(["filename\tcategory\tfold", *rows]))
    tested: list[str] = []
    for fold in (1, 2, 3):
        files = read_sounds(list_file=table, fold=fold)
        assert files.official_folds
        assert Counter(files.splits) == {"train": 4, "test": 2}
        tested += files.take(files.indices("test")).names
        assert f"fold {fold}" in files.layout
    assert sorted(tested) == sorted(names)
    with pytest.raises(ValueError, match="a fold of its column of folds, 1, 2, 3, received fold 4"):
        read_sounds(list_file=table, fold=4)
    # A column of splits says more.
    rows = [f"{name},{name[0]},1,{'test' if name[1] == '0' else 'train'}" for name in names]
    table.write_text("\n".join(["file,label,fold,split", *rows]))
    files = read_sounds(list_file=table)
    assert not files.official_folds
    assert Counter(files.splits) == {"train": 4, "test": 2}


def test_texts_in_a_table(tmp_path: Path) -> None:
    fill(tmp_path, "a.mp3", "b.WAV", "c.wav")
    table = tmp_path / "speech.csv"
    table.write_text(
        'path,sentence,speaker\na.mp3,"Once, cafe\u0301",ann\nb.WAV,two,bob\nc.wav,,x\n'
    )
    speech = read_speech(list_file=table)
    assert speech.texts == ("Once, café", "two")
    assert speech.groups == ("ann", "bob")
    assert "1 lines with an empty text were left out: c.wav" in speech.notes
    assert read_speech(list_file=table, keep_empty=True).texts[2] == ""
    table.write_text("a.mp3|one\nb.WAV|two\n")
    assert read_speech(list_file=table).texts == ("one", "two")
    table.write_text("path,text\na.mp3,one\nz.wav,two\n")
    with pytest.raises(FileNotFoundError, match=r"1 of 2 recordings are not in .*z\.wav"):
        read_speech(list_file=table)


def test_texts_beside_recordings(tmp_path: Path) -> None:
    fill(tmp_path, "train/1.flac", "train/2.flac", "test/1.FLAC", "test/9.wav", "test/2.png")
    for name, text in (("train/1", "one"), ("train/2", "two"), ("test/1", "one"), ("test/2", "-")):
        (tmp_path / f"{name}.txt").write_text(text)
    speech = read_speech(tmp_path)
    assert dict(zip(speech.names, speech.texts, strict=True)) == {
        "test/1.FLAC": "one",
        "train/1.flac": "one",
        "train/2.flac": "two",
    }
    assert speech.splits == ("test", "train", "train")
    assert speech.untexted == ("test/9.wav",)
    assert "1 texts without a recording were left out: test/2.txt" in speech.notes
    assert Counter(split_lines(speech, validation_share=0.5).splits)["validation"] == 1
    with pytest.raises(ValueError, match=r"root: expected recordings \(\.wav"):
        read_speech(fill(tmp_path / "none", "a.png"))


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not there")
def test_shared_data() -> None:
    digits = read_sounds(list_file=SHARED / "spoken_digits/train.csv")
    assert len(digits) == 2_700
    assert len(set(digits.groups)) == 6
    assert set(np.bincount(digits.labels)) == {270}
    for fold in range(1, 5):
        sounds = read_sounds(list_file=SHARED / "esc10/esc10.csv", fold=fold)
        assert Counter(sounds.splits) == {"train": 240, "test": 80}
        assert set(Counter(sounds.labels[i] for i in sounds.indices("test")).values()) == {8}
