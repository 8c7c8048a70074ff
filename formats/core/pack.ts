/** How units are packed into streams by native code, outside the event loop. */

import type { StreamForm } from './unpack.ts';

export interface Packing {
  readonly form: StreamForm;
  readonly level: number;
  /** Of deflate. */
  readonly windowBits: number;
}
