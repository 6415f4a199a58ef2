"""Chat templates of the published LLaVA-NeXT folders of llava-hf, which take content in parts alone."""

_IMAGES = (
    "{# Render all images first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
)
_TEXTS = "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"

MISTRAL = (
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    r"{{ '<<SYS>>\n' + message['content'][0]['text'] + '\n<</SYS>>\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ '[INST] ' }}"
    f"{_IMAGES}{{# Render all text next #}}{_TEXTS}{{{{ content['text'] }}}}{{% endfor %}}{{{{' [/INST]' }}}}"
    r"{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'][0]['text'] + '<\\s> '}}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
"""llava-v1.6-mistral-7b-hf, with the end token that it misspells."""

VICUNA = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    f"{_IMAGES}{{# Render all text next #}}{{% if message['role'] != 'assistant' %}}{_TEXTS}"
    "{{ content['text'] + ' '}}{% endfor %}{% else %}" + _TEXTS + "{% generation %}{{ content['text'] + ' '}}"
    "{% endgeneration %}{% endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""llava-v1.6-vicuna-7b-hf and -13b-hf."""

LLAMA3 = (
    "{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'}}"
    f"{_IMAGES}{{# Render all text next #}}{_TEXTS}{{{{ content['text'] }}}}{{% endfor %}}{{{{ '<|eot_id|>' }}}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
"""llama3-llava-next-8b-hf."""

CHATML = (
    r"{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}"
    f"{_IMAGES}{{# Render all text next #}}{_TEXTS}{{{{ content['text'] }}}}{{% endfor %}}{{{{ '<|im_end|>' }}}}"
    r"{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""llava-v1.6-34b-hf (Yi), without line feeds between turns."""

LLAVA_HF_TEMPLATES = {"mistral": MISTRAL, "vicuna": VICUNA, "llama3": LLAMA3, "chatml": CHATML}
"""By the named form that each is."""
