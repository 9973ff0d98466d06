"""`python -m nslora.graph.cli`."""

from nslora.graph.cli.app import main

main()
