"""Work comes in, figures go out: step.py and attention.py time it, profile.py says where time and memory go.

All measuring is in clock.py; tables.py writes what was found as Markdown, LaTeX or JSON lines; memory_page.py
draws the memory of a step over time. `scratchlm bench step`, `scratchlm bench attention` and
`scratchlm profile` are thin shells around these files.
"""
