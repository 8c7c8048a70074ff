import { ImageError, LunetteError } from '../core/errors.ts';
import type { FormatDriver } from '../driver.ts';
import { readHeader } from './create.ts';
import { hasSignature } from './header.ts';
import { VdiLayer } from './layer.ts';
import { findVdiParent } from './parent.ts';

/** VirtualBox's format. */
export const vdi: FormatDriver = {
  name: 'vdi',
  maxDepth: 64,
  probe: (head) => (hasSignature(head) ? 100 : 0),
  async open(storage, options) {
    try {
      if (options.snapshot !== undefined) {
        throw new LunetteError('NOT_FOUND', `a VDI image has no snapshots inside, so none called ${options.snapshot}`, {
          path: storage.path,
          help: 'The snapshots of VirtualBox are files of their own: name the one to open',
        });
      }
      const header = await readHeader(storage);
      return await VdiLayer.open(storage, header, options);
    } catch (error) {
      await storage.close();
      if (error instanceof ImageError) error.path ??= storage.path;
      throw error;
    }
  },
  findParent: findVdiParent,
};
