"""The tree engine is tried on the same world as vLLM's."""

from tests.engine.conftest import world as world  # noqa: PLC0414
