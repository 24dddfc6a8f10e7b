"""Pages of one file that need no network: figures by Vega-Lite, data packed inside, nothing of the data as markup."""
