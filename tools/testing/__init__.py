"""Fakes for tests of programs that use this package: a scripted chat model, a tiny model, a tiny task."""
