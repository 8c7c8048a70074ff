import { checksumDisk } from '../convert/checksum.ts';
import { createHost } from '../open/host.ts';
import { openDisk } from '../open/open-disk.ts';
import type { ChecksumCommandOptions } from './commands/checksum.ts';
import type { CliContext } from './context.ts';
import { createProgress } from './progress.ts';

/** Prints the checksum of a disk, and its name, as sha256sum does. */
export async function runChecksum(
  context: CliContext,
  name: string,
  options: ChecksumCommandOptions,
  warn: (message: string, path: string) => void,
): Promise<void> {
  const { algorithm, format, snapshot, forceShare, strict, parent, ignoreCid, allow, allowAny, secretFile } = options;
  const interrupted = new AbortController();
  const stopListening = context.interrupts.once(() => interrupted.abort());
  const host = createHost({ allow, allowAny, secretFile, warn, signal: interrupted.signal, readsOnce: true });
  const image = await openDisk(host, name, {
    format,
    snapshot,
    forceShare,
    strict,
    parent,
    ignoreCid,
  });
  try {
    const progress = createProgress(context, options, { label: 'reading', total: image.size });
    let sum: string;
    try {
      sum = await checksumDisk(image, algorithm, {
        signal: interrupted.signal,
        progress: (done) => progress.update(done),
      });
    } finally {
      progress.end();
    }
    context.stdout.write(`${sum}  ${name}\n`);
  } finally {
    stopListening();
    await image.close().catch(() => undefined);
  }
}
