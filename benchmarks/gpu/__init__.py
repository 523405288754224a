"""The proof on a GPU, in one command: right on the device, then fast. `python -m benchmarks.gpu --out DIR`.

    __main__      the command: starts workers, reads their rows, prints the table
    worker        one process that runs cases and writes a row for each
    measure       how errors, times and memory are measured
    correctness*  every kernel against float64          speed*   the times that have goals
    training      a GPT-2 of 124 million parameters     memory   attention's peak against the reference
    sweep         which tiles are fastest               goals    what is to be reached, and the tables

Nothing needs to be installed but torch, triton and numpy: stand_ins.py plays the packages that are missing.
"""
