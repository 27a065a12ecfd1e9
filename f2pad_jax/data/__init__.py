"""Pictures, folders of them, and pictures with anomalies made for the purpose."""
