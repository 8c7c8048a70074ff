import { commitImage } from '../convert/commit.ts';
import { rebaseImage } from '../convert/rebase.ts';
import { createHost, explainFormat, type HostOptions } from '../open/host.ts';
import { parseImageName } from '../open/name.ts';
import type { CliContext } from './context.ts';
import { createProgress, type ProgressOptions } from './progress.ts';

export interface RunCommitOptions extends HostOptions, ProgressOptions {
  readonly format?: string | undefined;
  readonly base?: string | undefined;
  readonly keep?: boolean | undefined;
  readonly parent?: string | undefined;
  readonly ignoreCid?: boolean | undefined;
}

export interface RunRebaseOptions extends HostOptions, ProgressOptions {
  readonly format?: string | undefined;
  readonly backing: string;
  readonly backingFormat?: string | undefined;
  readonly unsafe?: boolean | undefined;
}

/** What a change that takes long is told, and tells. */
interface Watched {
  readonly signal: AbortSignal;
  readonly progress: (done: number, total: number) => void;
}

/** Writes what an overlay holds into what it stands on. */
export async function runCommit(context: CliContext, name: string, options: RunCommitOptions): Promise<void> {
  const { format, base, keep, parent, ignoreCid } = options;
  const host = createHost(options);
  await watched(context, options, 'committing', (watch) =>
    commitImage(host, parseImageName(name).path, { format, base, keep, parent, ignoreCid, ...watch }),
  );
  if (options.quiet !== true) context.stdout.write('Image committed.\n');
}

/** Puts an overlay on another backing file. */
export async function runRebase(context: CliContext, name: string, options: RunRebaseOptions): Promise<void> {
  const { format, backing, backingFormat, unsafe } = options;
  const host = createHost(options);
  await watched(context, options, 'rebasing', (watch) =>
    rebaseImage(host, parseImageName(name).path, {
      format,
      base: backing,
      baseFormat: backingFormat,
      unsafe,
      ...watch,
    }),
  );
}

async function watched(
  context: CliContext,
  options: ProgressOptions & { readonly format?: string | undefined },
  label: string,
  act: (watch: Watched) => Promise<void>,
): Promise<void> {
  const interrupted = new AbortController();
  const stopListening = context.interrupts.once(() => interrupted.abort());
  const progress = createProgress(context, options, { label });
  try {
    await act({ signal: interrupted.signal, progress: (done, total) => progress.update(done, total) });
  } catch (error) {
    throw explainFormat(error, options.format);
  } finally {
    progress.end();
    stopListening();
  }
}
