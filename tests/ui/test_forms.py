"""Forms from config dataclasses: what they offer is what the settings allow, and what they give has been checked."""

from __future__ import annotations

from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from apps.app import config_values, settings
from apps.molecules.config import MoleculesConfig
from core.engine.errors import ConfigError
from tests.apps.toy import Config as ToyConfig
from ui import forms


def molecules_page() -> None:
    import streamlit as st

    from apps.molecules.config import MoleculesConfig
    from ui import forms

    st.session_state["given"] = forms.show(MoleculesConfig, "form", first=["targets", "epochs"],
                                           options={"targets": ("a", "b")})


def toy_page() -> None:
    import streamlit as st

    from tests.apps.toy import Config
    from ui import forms

    st.session_state["given"] = forms.show(Config, "form", first=["rate"])


def run(page: Any) -> AppTest:
    test = AppTest.from_function(page, default_timeout=60).run()
    assert not test.exception
    return test


def widget(test: AppTest, name: str) -> Any:
    return next(item for kind in ("number_input", "text_input", "selectbox", "multiselect", "checkbox")
                for item in test.get(kind) if item.key is not None and item.key.split(".")[1] == name)


@pytest.mark.parametrize(("page", "config", "given"), [
    (molecules_page, MoleculesConfig, {"targets": ("b",)}), (toy_page, ToyConfig, {})])
def test_an_untouched_form_gives_the_defaults(page: Any, config: type, given: dict[str, Any]) -> None:
    test = run(page)
    if given:
        widget(test, "targets").select("b").run()
    assert not test.error
    assert config_values(test.session_state["given"]) == config_values(config(**given))


def test_every_setting_has_an_input_with_its_range_and_help() -> None:
    test = run(molecules_page)
    for item in settings(MoleculesConfig):
        shown = widget(test, item.name)
        assert item.help in shown.help and item.flag in shown.help
        if item.kind in (int, float) and not item.many:
            assert (shown.min, shown.max) == (item.low, item.high)
        if item.choices:
            assert tuple(shown.options) == item.choices


def test_a_missing_setting_is_asked_for() -> None:
    test = run(molecules_page)
    assert test.session_state["given"] is None
    assert "Target is still empty" in test.error[0].value.replace("\\", "")


@pytest.mark.parametrize(("name", "text", "said"), [
    ("fractions", "0.5, 0.5", "fractions are three parts that sum to 1"), ("fractions", "0.8, x, 0.1", "cannot be"),
    ("fractions", "2, -1, 0", "fractions cannot be"), ("units", "c=eV", "units are COLUMN=UNIT")])
def test_an_impossible_value_gives_a_sentence(name: str, text: str, said: str) -> None:
    test = run(molecules_page)
    widget(test, "targets").select("a").run()
    widget(test, name).input(text).run()
    assert test.session_state["given"] is None and not test.exception
    assert said.lower() in test.error[0].value.replace("\\", "").lower()


def test_values_arrive_in_the_type_of_the_field() -> None:
    test = run(molecules_page)
    widget(test, "targets").select("a").select("b").run()
    widget(test, "epochs").set_value(7).run()
    widget(test, "rate").set_value(0.5).run()
    widget(test, "smiles").input("Molecule").run()
    widget(test, "units").input("a=eV, b=nm").run()
    widget(test, "best_epoch").check().run()
    widget(test, "model").select("ggnn").run()
    assert test.session_state["given"] == MoleculesConfig(
        targets=("a", "b"), epochs=7, rate=0.5, smiles="Molecule", units=("a=eV", "b=nm"), best_epoch=True,
        model="ggnn")


def test_a_column_of_another_data_set_is_not_kept() -> None:
    assert forms.checked(ToyConfig, {"sizes": (2, 3)}).sizes == (2, 3)
    with pytest.raises(ConfigError, match="sizes cannot be"):
        forms.checked(ToyConfig, {"sizes": ("x",)})
