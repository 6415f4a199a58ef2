#!/usr/bin/env bash
# Trains a small FocusLLaVA on real photographs, exports it to Hugging Face and asks it questions. CPU only, about ten
# minutes on two cores, the installation included. A second call continues where the first was interrupted.
#
#   bash examples/quickstart/run.sh [section.key=value ...]      settings that replace those of config.yaml
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source tools/environment.sh quickstart
export CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 PYTHONWARNINGS=ignore HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
out=quickstart
say() { printf '\n== %s\n' "$1"; }

say "1/6 photographs, tokenizer and shards"
[ -e $out/data/shards ] || python -m examples.quickstart.make_dataset --output $out/data

say "2/6 training with tensor parallelism over two processes"
torchrun --standalone --nproc_per_node=2 -m megatron_focus.train examples/quickstart/config.yaml "$@"

say "3/6 export to Hugging Face"
rm -rf $out/release
python tools/export_hf.py --checkpoint $out/checkpoints --output $out/release

say "4/6 asking the release every question, with transformers alone"
python -m examples.quickstart.ask --release $out/release --data $out/data --output $out/answers.json

say "5/6 a picture of what two questions keep of one photograph"
python -m examples.quickstart.picture --release $out/release --image $out/data/images/astronaut.png \
    --question "Which name stands first on the round patch?" "What does the model in the background show?" \
    --output $out/focus.png

say "6/6 summary"
python -m examples.quickstart.summary --tensorboard $out/tensorboard --answers $out/answers.json
echo
echo "Ask it something: .venv/bin/python -m examples.quickstart.ask --release $out/release" \
    "--image $out/data/images/chelsea.png --question 'What colour are the eyes?'"
