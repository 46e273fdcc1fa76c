"""The examples in docstrings are true."""

import doctest
import importlib
import pkgutil

import pytest

import srfa

MODULES = [
    module.name
    for module in pkgutil.walk_packages(srfa.__path__, "srfa.", onerror=lambda _: None)
    if not module.name.startswith("srfa.vllm")  # runs inside the engine and imports it
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_the_module_hold(name):
    outcome = doctest.testmod(importlib.import_module(name))
    assert outcome.failed == 0
