import type { StreamForm } from '../../formats/core/unpack.ts';

/** What native code calls them (native/streams.h). */
export const STREAM_FORMS: Readonly<Record<StreamForm, number>> = { deflate: 0, zstd: 1 };
