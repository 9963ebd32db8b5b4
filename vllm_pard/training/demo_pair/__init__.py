"""The bundled demo pair, made from nothing: text, a target, its PARD draft, and how often the one keeps the other's."""
