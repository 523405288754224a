"""The proof on a GPU, in one command: right on the device, then fast. `python -m benchmarks.gpu --out DIR`.

    __main__        the command: starts workers, reads their rows, prints the table
    worker          one process that runs cases and writes a row for each
    cases, check    what a case is; a kernel beside its twin and float64
    measure         how errors, times and memory are measured
    correctness*    every kernel against float64        speed*   the times that have goals
    training        a GPT-2 of 124 million parameters   memory   attention's peak against the reference
    sweep, tiles    which of attention's tiles are fastest
    sweep_constants the same for the sizes in the other kernels
    goals           what is to be reached, the tables

Nothing needs to be installed but torch, triton and numpy: stand_ins.py plays the packages that are missing.
"""
