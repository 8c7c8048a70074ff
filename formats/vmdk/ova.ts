import { ImageError, LunetteError } from '../core/errors.ts';
import type { FormatDriver } from '../driver.ts';
import type { Storage } from '../storage/storage.ts';
import { WindowStorage } from '../storage/window.ts';
import { vmdk } from './driver.ts';
import { firstName, isTar, listTar, type TarMember } from './tar.ts';

/** Archives of a machine (OVF in a tar file): their disks are read in place. */
export const ova: FormatDriver = {
  name: 'ova',
  // The description of the machine comes first, so that it can be read from a stream.
  probe: (head) => (isTar(head) && /\.ovf$/i.test(firstName(head)) ? 100 : 0),
  async open(storage, options) {
    let member: TarMember;
    try {
      if (!options.readOnly) {
        throw new LunetteError('READ_ONLY', 'disks in an archive are read, not written', {
          path: storage.path,
          help: 'Convert the disk to a file of its own',
        });
      }
      member = chooseDisk(await listTar(storage), options.member, storage.path);
    } catch (error) {
      await storage.close();
      throw error;
    }
    const range = { start: member.offset, length: member.size };
    return vmdk.open(new WindowStorage(storage, range, { readOnly: true, owns: true }), options);
  },
};

/** The disks in an archive, in its order. @throws {ImageError} as listTar */
export async function listOvaDisks(storage: Storage): Promise<TarMember[]> {
  return (await listTar(storage)).filter(({ name }) => /\.vmdk$/i.test(name));
}

function chooseDisk(members: readonly TarMember[], wanted: string | undefined, path: string): TarMember {
  const disks = members.filter(({ name }) => /\.vmdk$/i.test(name));
  const names = disks.map(({ name }) => name).join(', ');
  if (wanted !== undefined) {
    const disk = members.find(({ name }) => name === wanted);
    if (disk !== undefined) return disk;
    throw new ImageError('NOT_FOUND', `it holds no ${wanted}`, { path, help: `Disks in it: ${names}` });
  }
  const [first] = disks;
  if (first === undefined) {
    const packed = members.find(({ name }) => /\.vmdk\.gz$/i.test(name));
    if (packed !== undefined)
      throw new ImageError('UNSUPPORTED', `its disk ${packed.name} is compressed as a whole`, {
        path,
        help: 'Unpack the archive',
      });
    throw new ImageError('NOT_FOUND', 'it holds no VMDK disk', { path });
  }
  if (disks.length > 1) {
    throw new ImageError('INVALID', `it holds ${disks.length} disks: ${names}`, {
      path,
      help: `Name one: ${path}#${first.name}`,
    });
  }
  return first;
}
