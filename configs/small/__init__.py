"""The paper's experiments at a scale of minutes on two CPU cores, with data that come with packages."""
