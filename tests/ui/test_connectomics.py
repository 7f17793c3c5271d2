"""The page of the connectomics app: its empty state, sections of a volume, and what cannot be shown."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from ui.connectomics.sections import coloured, grey


def connectomics() -> None:
    from ui.connectomics.page import page

    page()


def shown(tab: str, data: Path | None = None) -> AppTest:
    test = AppTest.from_function(connectomics, default_timeout=120)
    test.session_state["tab"] = tab
    if data is not None:
        test.session_state["connectomics-data"] = str(data)
    test.run()
    assert not test.exception
    return test


def words(test: AppTest) -> str:
    return "\n".join(str(item.value) for kind in ("info", "error", "warning", "markdown") for item in test.get(kind))


@pytest.mark.parametrize(("tab", "said"), [("Data", "synthetic volume"), ("Train", "Choose a data set in the tab")])
def test_an_empty_tab_says_what_to_do(folders: Path, tab: str, said: str) -> None:
    assert said in words(shown(tab))


def test_sections_are_shown_with_labels(folders: Path) -> None:
    path = folders / "small.h5"
    with h5py.File(path, "w") as file:
        file["raw"] = np.arange(4 * 20 * 30, dtype=np.uint16).reshape(4, 20, 30)
        file["labels"] = np.ones((4, 20, 30), np.uint8)
        file["other"] = np.ones((4, 20, 31), np.uint8)
        file["raw"].attrs["voxel_size"] = (40.0, 8.0, 8.0)
    test = shown("Data", path)
    test.selectbox(key="connectomics-image").set_value("raw").run()
    assert {item.label: item.value for item in test.metric} == {
        "Voxels (z, y, x)": "4 x 20 x 30", "Type": "uint16", "Voxel size, nm": "40 x 8 x 8"}
    test.selectbox(key="connectomics-over").set_value("labels").run()
    assert not test.exception and not test.warning
    test.selectbox(key="connectomics-over").set_value("other").run()
    assert "another shape" in words(test)


def test_a_file_that_is_none_is_an_error(folders: Path) -> None:
    (folders / "broken.h5").write_bytes(b"nothing")
    assert "Cannot use the volume" in words(shown("Data", folders / "broken.h5"))


def test_colours_belong_to_labels() -> None:
    image, labels = np.full((4, 6), 7, np.uint8), np.zeros((4, 6), np.int64)
    labels[:, 3:] = 5
    first, second = coloured(image, labels), coloured(image, np.where(labels, 5, 9))
    np.testing.assert_array_equal(first[:, 3:], second[:, 3:])
    assert (first[:, :3] == first[0, 0, 0]).all()
    ramp = grey(np.linspace(-3, 3, 600).reshape(20, 30))
    assert ramp.min() == 0 and ramp.max() == 255
