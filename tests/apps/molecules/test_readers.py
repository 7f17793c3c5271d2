"""Readers: every format gives the same molecules, dirt is refused row by row, errors are clear, memory stays flat."""

from __future__ import annotations

import gzip
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from rdkit import Chem

from apps.molecules.config import MoleculesConfig
from apps.molecules.readers import Limits, Record, Refusal, check_units, columns, read_rows
from core.engine.errors import ConfigError, DataError

ETHANOL_XYZ = """9
name="ethyl alcohol" energy=-1.5 charge=0
C -0.8883 0.1670 -0.0273
C 0.4658 -0.5116 -0.0368
O 1.4311 0.3229 0.5867
H -0.8487 1.1175 -0.5695
H -1.6471 -0.4704 -0.4896
H -1.1964 0.3978 0.9977
H 0.7920 -0.7224 -1.0597
H 0.4246 -1.4559 0.5138
H 1.4671 1.1550 0.0848
"""


def written(folder: Path, text: str | bytes, name: str = "molecules.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def split_rows(rows) -> tuple[list[Record], list[Refusal]]:
    rows = list(rows)
    assert [row.row for row in rows] == list(range(1, len(rows) + 1)), "every row comes once, in order"
    return [r for r in rows if isinstance(r, Record)], [r for r in rows if isinstance(r, Refusal)]


@pytest.mark.parametrize("text", [
    "smiles,y\nCCO,1.5\nc1ccccc1,\n",
    "\ufeffsmiles,y\r\nCCO,1.5\r\nc1ccccc1,\r\n",
    '"smiles","y"\n"CCO","1.5"\n"c1ccccc1",""\n',
    "SMILES\ty\nCCO\t1.5\nc1ccccc1\t\n",
    "Canonical SMILES;y\nCCO;1.5\nc1ccccc1;\n",
    "y|mol\n1.5|CCO\n|c1ccccc1\n",
    "name,y,what\nethanol,1.5,CCO\nbenzene,,c1ccccc1\n",
    '"a\nname",y,smiles\n"of\ntwo lines",1.5,CCO\n"commas, too",,c1ccccc1\n',
    "smiles,y\nCCO,1.5\nc1ccccc1,\n".encode("utf-16"),
    gzip.compress(b"smiles,y\nCCO,1.5\nc1ccccc1,\n"),
], ids=["plain", "bom-crlf", "quoted", "tab", "semicolon", "bar", "found", "newlines", "utf-16", "gzip"])
def test_spellings_of_a_table(tmp_path: Path, text: str | bytes) -> None:
    records, refusals = split_rows(read_rows(written(tmp_path, text), targets=["y"]))
    assert not refusals
    assert [Chem.MolToSmiles(record.molecule) for record in records] == ["CCO", "c1ccccc1"]
    np.testing.assert_array_equal([record.targets[0] for record in records], [1.5, np.nan])


@pytest.mark.parametrize(("row", "reason"), [
    (",1", "empty SMILES"),
    ("C1CC,1", "RDKit cannot parse it: unclosed ring"),
    ("CN(C)(C)(C)C,1", "RDKit cannot parse it: Explicit valence for atom # 1 N, 5, is greater than permitted"),
    ("c1cccc1,1", "RDKit cannot parse it: Can't kekulize mol. Unkekulized atoms: 0 1 2 3 4"),
    ("C" * 412 + ",1", "412 heavy atoms, the limit is 300"),
    ("C" * 7000 + ",1", "7000 characters long, the limit is 6000"),
    (".".join(["[Na+]"] * 9) + ",1", "9 unconnected parts, the limit is 8"),
    ("CCO,abc", "target 'y' is 'abc', not a number"),
    ("CCO,1_0", "target 'y' is '1_0', not a number"),
    ("CCO,nan", "target 'y' is 'nan', not a finite number"),
    ("CCO,-inf", "target 'y' is '-inf', not a finite number"),
    ("CCO,1e39", "target 'y' is '1e39', not a finite number"),
    ("CCO", "1 fields, the header has 2"),
    ("CCO,1,2", "3 fields, the header has 2"),
    ("", "empty line"),
    ('"CCO,1', "a quotation mark is opened and never closed"),
    ("CC\u00d6,1", "the SMILES has characters that are not ASCII"),
    ("CC>O>C,1", "a reaction must be written as reactants>>products"),
    ("[CH4:1]>>C1,1", "products: RDKit cannot parse it: unclosed ring"),
    ("C>>C,1", "no atom of the reaction is mapped on both sides"),
    ("[CH3:1][CH3:1]>>[CH4:1],1", "map number 1 occurs twice in the reactants"),
])
def test_a_bad_row_is_refused_and_the_rest_goes_on(tmp_path: Path, row: str, reason: str, capfd) -> None:
    path = written(tmp_path, f"smiles,y\nCC,1\nCCC,2\n{row}\nCCO,3\nCN,4\n")
    records, refusals = split_rows(read_rows(path, targets=["y"], limits=Limits(heavy_atoms=300, fragments=8)))
    assert [(refusal.row, refusal.reason) for refusal in refusals] == [(3, reason)]
    assert [record.targets[0] for record in records] == [1, 2, 3, 4]
    assert capfd.readouterr() == ("", ""), "RDKit's own log lines are kept out of the way"


def test_bytes_that_are_not_text_are_refused_or_shown_as_question_marks(tmp_path: Path) -> None:
    path = written(tmp_path, b"smiles,y,name\nCCO,1,caf\xe9\nC\xff,2,x\nCC,\xfe,x\nCCC,4,x\n")
    records, refusals = split_rows(read_rows(path, targets=["y"], extras=["name"]))
    assert [record.extras["name"] for record in records] == ["caf?", "x"]
    assert [(r.row, r.reason) for r in refusals] == [
        (2, "the SMILES has characters that are not ASCII"), (3, "target 'y' is '?', not a number")]


def test_one_line_of_ten_million_characters_is_one_refusal(tmp_path: Path) -> None:
    path = written(tmp_path, "smiles\nCC\n" + "C" * 10_000_000 + "\nCCC\n")
    records, refusals = split_rows(read_rows(path))
    assert [record.row for record in records] == [1, 3]
    assert refusals[0].reason == "a line of more than 1048576 characters"


def test_cxsmiles_tails_and_names_are_tolerated(tmp_path: Path) -> None:
    path = written(tmp_path, "smiles\nCCO |$;;OH$|\nCCO |nonsense|\nCCO ethyl alcohol, pure\nCC |c:1,t:2\n")
    records, refusals = split_rows(read_rows(path))
    assert [Chem.MolToSmiles(record.molecule) for record in records] == ["CCO", "CCO", "CCO", "CC"] and not refusals


def test_dative_arrows_are_no_reactions(tmp_path: Path) -> None:
    records, refusals = split_rows(read_rows(written(tmp_path, "smiles\n[NH3]->[Pt](Cl)Cl\n")))
    assert records[0].products is None and not refusals


@pytest.mark.parametrize(("text", "options", "message"), [
    ("smiles,logS\nCC,1\n", {"targets": ["logs"]},
     "molecules.csv has no column 'logs'; its columns are 'smiles', 'logS'; did you mean 'logS'?"),
    ("smiles,logS\nCC,1\n", {"smiles_column": "mol"},
     "molecules.csv has no column 'mol'; its columns are 'smiles', 'logS'."),
    ("smiles,y,y\nCC,1,2\n", {"targets": ["y"]}, "molecules.csv has 2 columns named 'y'; rename all but one."),
    ("id,y\n7,1\n8,2\n", {}, "molecules.csv has no column of SMILES; its columns are 'id', 'y'."),
    ("CCCO,1\nCCCCO,2\n", {}, "molecules.csv seems to have no header: its first line holds the molecule 'CCCO'; "
                              "put column names above it."),
    ("", {}, "molecules.csv is empty."),
    ("smiles,y\n", {}, "molecules.csv has no usable row among its 0 rows; it holds none at all."),
    ("smiles,y\nC1,1\n,2\n", {}, "molecules.csv has no usable row among its 2 rows; "
                                 "row 1: RDKit cannot parse it: unclosed ring."),
    (b"PK\x03\x04rest", {}, "molecules.csv is an Excel workbook or a zip archive; save the table as CSV."),
])
def test_a_file_that_cannot_be_used_is_one_clear_sentence(tmp_path: Path, text, options: dict, message: str) -> None:
    with pytest.raises(DataError) as caught:
        list(read_rows(written(tmp_path, text), **options))
    assert str(caught.value) == message


def test_files_that_are_not_there_or_not_molecules(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.csv cannot be read: No such file"):
        read_rows(tmp_path / "nowhere.csv")
    with pytest.raises(DataError, match=r"image\.png is of no known format; molecules come as \.csv"):
        read_rows(written(tmp_path, "x", "image.png"))


def test_a_truncated_gzip_file_keeps_what_could_be_read(tmp_path: Path) -> None:
    whole = gzip.compress("".join(["smiles,n\n", *(f"{'C' * (i % 50 + 1)},{i * i}\n" for i in range(20_000))]).encode())
    path = written(tmp_path, whole[:len(whole) // 2], "cut.csv.gz")
    count = 0
    with pytest.raises(DataError, match=r"cut\.csv\.gz is damaged after line \d+: "):
        for row in read_rows(path):
            count = row.row
    assert 5_000 < count < 15_000


@pytest.mark.parametrize(("given", "message"), [
    ({"logS": "mg/L"}, "The unit of 'logS' is given as 'mg/L', but the model was trained on 'log10(mol/L)'; "
                       "convert the values to the model's unit first."),
    ({"logP": ""}, "A unit is given for 'logP', which the model does not predict; it predicts 'logS', 'pKa'."),
    ({"pKa": "1"}, "A unit is given for 'pKa', but the training was told none; leave it out."),
])
def test_wrong_units(given: dict[str, str], message: str) -> None:
    with pytest.raises(DataError) as caught:
        check_units(given, {"logS": "log10(mol/L)"}, ("logS", "pKa"))
    assert str(caught.value) == message


def test_right_units() -> None:
    check_units({"logS": " log10(mol/L) "}, {"logS": "log10(mol/L)", "logP": ""}, ("logS", "logP"))


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        path = tmp_path / f"{count}.csv"
        with path.open("w") as stream:
            stream.write("smiles,y\n")
            stream.writelines(f"{'C' * (i % 7 + 1)}O,{i if i % 5 else 'bad'}\n" for i in range(count))
        tracemalloc.start()
        assert sum(1 for _ in read_rows(path, targets=["y"])) == count
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    peak(200)  # lazy imports and caches
    assert peak(20_000) <= 1.1 * peak(2_000)


# ------------------------------------------------------------------------------------------------ 3-D


def test_xyz_frames_carry_columns_bonds_and_coordinates(tmp_path: Path) -> None:
    path = written(tmp_path, ETHANOL_XYZ * 2, "two.extxyz")
    assert columns(path) == ("name", "energy", "charge")
    records, refusals = split_rows(read_rows(path, targets=["energy"], extras=["name"]))
    assert not refusals and len(records) == 2
    assert Chem.MolToSmiles(Chem.RemoveHs(records[1].molecule)) == "CCO"
    assert records[1].targets[0] == -1.5 and records[1].extras["name"] == "ethyl alcohol"
    np.testing.assert_array_equal(records[1].coordinates[2], [1.4311, 0.3229, 0.5867])


def test_xyz_columns_may_be_moved_by_properties(tmp_path: Path) -> None:
    text = '2\nProperties=id:I:1:pos:R:3:species:S:1 e="1"\n1 0 0 0 H\n2 0 0 0.74 1\n'
    records, _ = split_rows(read_rows(written(tmp_path, text, "h2.xyz"), targets=["e"]))
    assert Chem.MolToSmiles(records[0].molecule) == "[H][H]"


@pytest.mark.parametrize(("frame", "reason"), [
    ("3\nx\nC 0 0 0\nO 0 0 1.1\n", "2 atoms, the first line says 3"),
    ("1\nx\nXx 0 0 0\n", "'Xx 0 0 0' is not an element and three coordinates"),
    ("1\nx\nC 0 0\n", "'C 0 0' is not an element and three coordinates"),
    ("1\nx\nC 0 0 nan\n", "'C 0 0 nan' is not an element and three coordinates"),
    ("hello\nC 0 0 0\n", "an XYZ frame must start with its number of atoms"),
    ("0\nx\n", "0 atoms, the first line says 0"),
])
def test_a_broken_frame_does_not_stop_the_next(tmp_path: Path, frame: str, reason: str, capfd) -> None:
    records, refusals = split_rows(read_rows(written(tmp_path, ETHANOL_XYZ + frame + ETHANOL_XYZ, "some.xyz")))
    assert [record.row for record in records] == [1, 3]
    assert [refusal.reason for refusal in refusals] == [reason]
    assert capfd.readouterr() == ("", "")


def test_atoms_without_sound_bonds_stay_apart(tmp_path: Path) -> None:
    hydronium = "4\ncharge={}\nO 0 0 0\nH 0.96 0 0\nH -0.48 0.83 0\nH -0.48 -0.83 0\n"
    records, _ = split_rows(read_rows(written(tmp_path, hydronium.format(1) + hydronium.format(0), "h3o.xyz")))
    assert [record.molecule.GetNumBonds() for record in records] == [3, 0]


def test_sdf_records_carry_fields_and_coordinates(tmp_path: Path) -> None:
    frame = next(read_rows(written(tmp_path, ETHANOL_XYZ, "one.xyz")))
    block = Chem.MolToMolBlock(frame.molecule)
    text = f"{block}> <logS>\n-0.5\n\n> <note>\ntwo\nlines\n\n$$$$\nbroken\n\n\n$$$$\n{block}$$$$\n"
    for path in (written(tmp_path, text, "some.sdf"), written(tmp_path, gzip.compress(text.encode()), "some.sdf.gz")):
        records, refusals = split_rows(read_rows(path, targets=["logS"], extras=["note"]))
        assert [record.row for record in records] == [1, 3]
        assert refusals == [Refusal(2, "broken", "no 'M  END' line closes the atoms and bonds")]
        assert records[0].targets[0] == -0.5 and np.isnan(records[1].targets[0])
        assert records[0].extras["note"] == "two\nlines"
        np.testing.assert_allclose(records[0].coordinates, frame.coordinates, atol=1e-4)


# ------------------------------------------------------------------------------------------------ real data


@pytest.mark.realdata
@pytest.mark.parametrize(("file", "usable", "refused"), [
    ("moleculenet/BBBP.csv", 2039, 11),
    ("moleculenet/tox21.csv.gz", 8006, 8),
    ("moleculenet/sider.csv.gz", 1427, 0),
    ("moleculenet/delaney-processed.csv", 1128, 0),
    ("moleculenet/SAMPL.csv", 642, 0),
    ("moleculenet/bace.csv", 1513, 0),
    ("chemprop_fixtures/rxn.csv", 100, 0),
    ("qm9_3d/qm9_3d.xyz.gz", 3756, 0),
    pytest.param("moleculenet/HIV.csv.gz", 41_120, 7, marks=pytest.mark.slow),
])
def test_published_sets(realdata: Path, file: str, usable: int, refused: int) -> None:
    records, refusals = split_rows(read_rows(realdata / "molecules" / file))
    assert (len(records), len(refusals)) == (usable, refused)
    assert all(refusal.reason.startswith("RDKit cannot parse it: Explicit valence") for refusal in refusals)


@pytest.mark.realdata
def test_blank_labels_of_tox21(realdata: Path) -> None:
    path = realdata / "molecules/moleculenet/tox21.csv.gz"
    targets = [name for name in columns(path) if name[:3] in ("NR-", "SR-")]
    labels = np.array([row.targets for row in read_rows(path, targets=targets) if isinstance(row, Record)])
    known = np.isfinite(labels).sum(axis=0)
    assert labels.shape == (8006, 12) and known.min() > 5900 and known.max() < 7440
    assert set(np.unique(labels[np.isfinite(labels)])) == {0, 1}


@pytest.mark.realdata
def test_freesolv_structures_are_the_molecules_of_its_table(realdata: Path, tmp_path: Path) -> None:
    """All but the nitro groups and one sulfone, which its SDF files and its table draw with different charges."""
    folder = realdata / "molecules/freesolv_3d"
    lines = (folder / "database.txt").read_text().splitlines()
    smiles = dict(line.split("; ")[:2] for line in lines if not line.startswith("#"))
    checked = 0
    with tarfile.open(folder / "sdffiles.tar.gz") as archive:
        for member in [member for member in archive if member.name.endswith(".sdf")][::8]:
            record = next(read_rows(written(tmp_path, archive.extractfile(member).read(), "one.sdf")))
            assert record.coordinates.shape == (record.molecule.GetNumAtoms(), 3)
            expected = smiles[Path(member.name).stem]
            if "[N+](=O)[O-]" not in expected and "[S+2]" not in expected:
                assert Chem.MolToSmiles(Chem.RemoveHs(record.molecule)) == Chem.CanonSmiles(expected)
                checked += 1
    assert checked > 60


@pytest.mark.parametrize("frame", [
    "1\ncharge=inf\nC 0 0 0\n", "1\ncharge=1e20\nC 0 0 0\n",
    "1\ncharge=abc\nC 0 0 0\n", "1\na\n99999999999999999999 0 0 0\n", "1\na\n119 0 0 0\n"])
def test_an_odd_frame_is_refused_and_the_others_are_read(tmp_path: Path, frame: str) -> None:
    records, refusals = split_rows(read_rows(written(tmp_path, ETHANOL_XYZ + frame + ETHANOL_XYZ, "some.xyz")))
    assert [record.row for record in records] == [1, 3] and [refusal.row for refusal in refusals] == [2]


def test_rows_may_end_in_a_comma(tmp_path: Path) -> None:
    path = written(tmp_path, "smiles,y\nCCO,1,\nCCN,2,\nCC,3,\n")
    assert columns(path) == ("smiles", "y")
    records, refusals = split_rows(read_rows(path, targets=["y"]))
    assert [record.targets.tolist() for record in records] == [[1.0], [2.0], [3.0]] and not refusals


@pytest.mark.parametrize("settings", [
    {"targets": ("y", "y")}, {"targets": ("y", "y_low")}, {"targets": ("y",), "folds": 2, "split": "column"}])
def test_ambiguous_settings_are_refused(settings: dict) -> None:
    with pytest.raises(ConfigError):
        MoleculesConfig(**settings)
