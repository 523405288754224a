"""Models for other programs, and theirs for us: files that we write and read by hand, proven by equal logits.

    weights    a model -> its weights with all multipliers worked in; whether another program can compute it
    names      our names and orders of weights <-> those of Hugging Face
    card       a run -> the page that describes the model
    hf         a run -> a folder that transformers opens
    hf_config  Hugging Face's config.json <-> our settings
    hf_read    a folder of Hugging Face -> a run folder; suspicious of everything
    gguf       numbers and texts -> a GGUF file
    llama_cpp  a run -> a GGUF file that llama.cpp opens
    onnx_file  a run -> the graph of its model, for onnxruntime

Sources of the formats: https://huggingface.co/docs/transformers,
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""
