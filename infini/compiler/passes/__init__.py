"""Passes: functions from Program to Program, each in its own file; `compiler.pipeline` lists them."""
