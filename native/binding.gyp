{
  "targets": [
    {
      "target_name": "lunette",
      "sources": [
        "addon.cc",
        "crc32c.cc",
        "deflate.cc",
        "direct_io.cc",
        "file_ops.cc",
        "glue_bytes.cc",
        "glue_files.cc",
        "glue_io_queue.cc",
        "glue_stream.cc",
        "glue_system.cc",
        "inflate.cc",
        "io_flusher.cc",
        "io_queue.cc",
        "locks.cc",
        "probe.cc",
        "streams.cc",
        "transfer.cc",
        "unix_datagram.cc",
        "zero.cc",
        "zstd.cc"
      ],
      "dependencies": ["<!(node -p \"require('node-addon-api').targets\"):node_addon_api_except"],
      "defines": ["NAPI_VERSION=8", "_FILE_OFFSET_BITS=64"],
      "cflags!": ["-O3"],
      "cflags_cc!": ["-O3"],
      "cflags": ["-O2", "-Wall", "-Wextra", "-fvisibility=hidden"],
      "cflags_cc": ["-std=c++17"],
      "xcode_settings": {
        "CLANG_CXX_LANGUAGE_STANDARD": "c++17",
        "GCC_SYMBOLS_PRIVATE_EXTERN": "YES",
        "MACOSX_DEPLOYMENT_TARGET": "11.0"
      },
      "conditions": [
        ["OS=='linux'", {
          "libraries": ["-lpthread"],
          "sources": [
            "bus_guard.cc",
            "genl_message.cc",
            "glue_netlink.cc",
            "glue_uio.cc",
            "tcmu_netlink.cc",
            "tcmu_ring.cc",
            "uio_device.cc"
          ]
        }]
      ]
    }
  ]
}
