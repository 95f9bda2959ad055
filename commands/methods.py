"""List the methods: paper, parameters on a backbone, and whether they merge."""


def methods(backbone: str = "vit_base_patch16_224.augreg_in21k", num_classes: int = 100) -> None:
    """Print one line for every method.

    Args:
        backbone: Full timm tag of the backbone that parameters are counted on; its weights are not loaded.
        num_classes: Outputs of the classifier, for the count that includes it.
    """
    from rich.console import Console
    from rich.table import Table

    from backbones.timm_models import check_name
    from lightning_modules.classification import Classification
    from methods import METHODS, compose

    check_name(backbone, pretrained=False)
    table = Table(title=f"Methods on {backbone}, {num_classes} classes", title_justify="left")
    for name, style in {"--method": "left", "what": "left", "trained, no head": "right", "with head": "right"}.items():
        table.add_column(name, justify=style)  # type: ignore[arg-type]
    table.add_column("merges")
    for name, method in METHODS.items():
        summary = (method.__doc__ or "").strip().partition("\n")[0]
        try:
            model = compose(method, task=Classification)(backbone=backbone, pretrained=False, num_classes=num_classes)
            model.configure_model()
            counts = model.parameter_counts()
            shown = [f"{count:,}" for count in counts] if model.adapted else ["chosen from data", ""]
        except ValueError as error:
            shown = [str(error) if method.standalone else "stacks on another", ""]
        table.add_row(name, summary, *shown, "yes" if method.mergeable else "no")
    Console(width=150).print(table)
