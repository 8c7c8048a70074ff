import { UsageError } from '../../formats/core/errors.ts';
import { createImage, creatorOf, parseSize, sizeProblem } from '../../formats/index.ts';
import { openStorage } from '../io/open-storage.ts';
import { createHost, type HostOptions } from '../open/host.ts';
import { parseImageName } from '../open/name.ts';
import { secretsOf } from '../open/secrets.ts';
import type { CliContext } from './context.ts';
import { asksForHelp, parseOptionTexts, renderFormatting, renderOptions } from './create-options.ts';
import { oneLine } from './exit.ts';

export interface RunCreateOptions extends HostOptions {
  readonly format: string;
  readonly optionTexts: readonly string[] | undefined;
  readonly backing: string | undefined;
  readonly backingFormat: string | undefined;
  readonly unchecked: boolean;
  readonly quiet: boolean;
}

/** Makes an image, or prints the options that it could have. */
export async function runCreate(
  context: CliContext,
  file: string | undefined,
  size: number | undefined,
  options: RunCreateOptions,
): Promise<void> {
  const creator = creatorOf(options.format);
  if (asksForHelp(options.optionTexts)) {
    context.stdout.write(renderOptions(creator));
    return;
  }
  if (file === undefined) throw new UsageError('USAGE', "missing required argument 'file'");
  const { size: sizeText, backing_file, backing_fmt, ...values } = parseOptionTexts(options.optionTexts);
  const reference = options.backing ?? backing_file;
  const backingFormat = options.backingFormat ?? backing_fmt;
  if (reference === undefined && (backingFormat !== undefined || options.unchecked)) {
    throw new UsageError(
      'USAGE',
      `${options.unchecked ? '-u' : '-F'} is about a backing file, and there is none: name it with -b`,
    );
  }
  if (size !== undefined && sizeText !== undefined) {
    throw new UsageError('USAGE', `the size is given twice: as an argument, and as -o size=${sizeText}`);
  }
  const asked = size ?? (sizeText === undefined ? undefined : parseGiven(sizeText));
  await createImage({
    path: parseImageName(file).path,
    format: options.format,
    size: asked,
    values,
    backing:
      reference === undefined
        ? undefined
        : {
            reference,
            format: backingFormat,
            unchecked: options.unchecked,
          },
    host: createHost(options),
    openStorage,
    secrets: secretsOf(options.secretFile),
    announce: (image) => {
      if (!options.quiet) context.stdout.write(`${oneLine(renderFormatting(file, image).trimEnd())}\n`);
    },
  });
}

function parseGiven(text: string): number {
  const size = parseSize(text);
  if (size === undefined) throw new UsageError('USAGE', `-o size=${text}: ${sizeProblem(text)}`);
  return size;
}
