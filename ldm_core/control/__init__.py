"""Controls: ControlNet, T2I-Adapter and IP-Adapter, networks that steer a U-Net by pictures."""
