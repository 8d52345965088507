"""The page to paint on: `artfusion web`. `serving` starts it, `page` draws it, `studio` paints."""
