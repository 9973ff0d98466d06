"""Fakes for tests of programs that use this package: a scripted chat model, a tiny random model, a tiny task."""

from nslora.tools.testing.scripted_chat import ScriptedChat, improved
from nslora.tools.testing.tiny_model import write_tiny_model
from nslora.tools.testing.tiny_task import write_tiny_task

__all__ = ["ScriptedChat", "improved", "write_tiny_model", "write_tiny_task"]
