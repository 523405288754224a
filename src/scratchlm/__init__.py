"""scratchlm: the whole life of a language model, every component written from scratch.

text -> tokens -> batches -> model -> loss -> optimizer -> checkpoint -> generation -> report

    registry      families of exchangeable parts, chosen by name
    config        TOML or JSON and key=value -> frozen, checked settings
    runtime       device, precision, threads, seeds: decided here, never at import
    lock          one process per run folder, kept by the kernel
    hardware      peaks of devices, by data sheet or measured; utilisation
    tokenizer/    text -> ids: byte-level BPE (plain twin and fast version), characters
    data/         ids -> batches: corpora, the embedded stories, preparation, shards, loaders
    model/        the transformer and its parts, the bigram baseline, accounting
    kernels/      attention, losses, norms, rotation, optimizers: formula, fast way, Triton (gpu/)
    loss          cross-entropy with z-loss and smoothing, bits per byte
    optim/        SGD, AdamW, Lion, Muon, an average of weights, learning-rate schedules, clipping
    distributed/  several processes: shared rows, data parallelism, ZeRO, FSDP by hand
    checkpoint/   safetensors and a manifest with checksums, written atomically, in a thread
    generate/     sampling, the engine with its key-value cache
    evaluate/     likelihood over a whole split
    train/        run settings, assembly, the training loop, its guard and record, resume, the plan
    posttrain/    from a base model to an assistant: by demonstration, preference, reward
    interop/      files of other programs: Hugging Face, GGUF; both ways
    serve/        an HTTP server with OpenAI's interface, and a page to talk on
    study/        the report with its plots, runs side by side, reference curves
    lab/          studies: many runs that answer one question, and their report
    bench/        training steps and attention timed and weighed, profiles, the memory timeline
    cs336/        the course's adapter functions over this library
    recipes/      one TOML file per named run; launch/: files that start one on a cluster
    cli/          the command line
"""

__version__ = "0.1.0"
