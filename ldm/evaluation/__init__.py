"""How far results are from their contents and styles: metrics, tables, sheets."""
