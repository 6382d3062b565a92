"""The command line and what it stands on; nothing of the library imports it.

doctor  demo  report  sweep (tune)  ->  footprint  roofline  compiling  ->  workloads  measure  console
"""
