"""Parts of ``launch.serve``: limits, the gate before Gradio, isolated reading, the page."""
