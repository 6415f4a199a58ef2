"""Serves the page."""

import signal
from pathlib import Path
from typing import Any

from examples.demo.asking import Asker
from examples.demo.page import build_page, look
from examples.demo.upload import MAX_BYTES


def serve(asker: Asker, examples: list[tuple[Path, str]], host: str, port: int, share: bool, wait: bool = True) -> Any:
    """Serve the page of one model.

    Args:
        asker: the model.
        examples: pictures with a question, to choose from.
        host: the address to listen on.
        port: its port.
        share: whether to open a public address as well.
        wait: whether to return only when the user ends the program.

    Returns:
        gradio's page; ``close()`` ends the server.

    Raises:
        OSError: if the port is taken.
    """
    page = build_page(asker, examples)
    # Everything that the environment could switch on is said here.
    _, address, public = page.launch(
        server_name=host,
        server_port=port,
        share=share,
        inbrowser=False,
        prevent_thread_lock=True,
        quiet=True,
        show_error=False,
        max_file_size=MAX_BYTES,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        ssr_mode=False,
        pwa=False,
        **look(),
    )
    print(f"serving on {address}" + (f" and {public}" if public else "") + "; end with Ctrl-C", flush=True)
    if wait:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as by Ctrl-C, so that uploads are deleted
        page.block_thread()
    return page
